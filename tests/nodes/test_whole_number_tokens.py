"""In int8 and int4 an answer is the same to the last bit, alone or not, split or not, replayed.

Whatever the family, the windows and the element type of the KV; the model in the package too.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import pytest
import torch

from broker.work import Sampling
from nodes.sampler import choose
from nodes.selftest import check_rows
from tests.support.company import (
    KEY,
    NUM_TOKENS,
    PROMPT,
    REPLAYED_FROM,
    TOKENS_IN_COMPANY,
    Case,
    Company,
    Course,
    course,
    demo_case,
    random_case,
    replay,
    seen_kv,
)
from tests.support.stages import decode, open_request, prefill

SAMPLING: Final = Sampling(temperature=0.8, top_p=0.9, seed=5)


CASES: Final[dict[str, Callable[[], Case]]] = {
    "llama3-int8": partial(random_case, "llama3", "int8"),
    "llama3-int4": partial(random_case, "llama3", "int4"),
    # Of mistral, all layers have a window, of qwen2 the last three.
    "mistral-int8": partial(random_case, "mistral", "int8"),
    "mistral-int8-kv-bfloat16": partial(random_case, "mistral", "int8", "bfloat16"),
    "qwen2-int8": partial(random_case, "qwen2", "int8"),
    "qwen2-int4-kv-bfloat16": partial(random_case, "qwen2", "int4", "bfloat16"),
    "qwen3-int8-kv-bfloat16": partial(random_case, "qwen3", "int8", "bfloat16"),
    "qwen3_moe-int8": partial(random_case, "qwen3_moe", "int8"),
    "qwen3_moe-int4": partial(random_case, "qwen3_moe", "int4"),
    # Caps of scores and logits, and sinks, are computed outside torch's attention.
    "gemma2-int8": partial(random_case, "gemma2", "int8"),
    "gpt_oss-int8-kv-bfloat16": partial(random_case, "gpt_oss", "int8", "bfloat16"),
    "demo-int8": partial(demo_case, "int8"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


@pytest.fixture(scope="module")
def expected(case: Case) -> Course:
    return course(case.stages(), SAMPLING)


def test_the_self_test_of_the_device_finds_no_difference_at_all(case: Case) -> None:
    check_rows(case.stages()[0], case.weights.weights)


@pytest.mark.parametrize("cuts", [(1,), (2, 4), (1, 2, 3, 4)])
def test_any_split_gives_tokens_logits_and_kv_of_the_whole_model(
    case: Case, expected: Course, cuts: tuple[int, ...]
) -> None:
    split = course(case.stages(cuts), SAMPLING)
    assert split.tokens == expected.tokens
    assert torch.equal(split.logits, expected.logits)
    assert all(map(torch.equal, split.kv, expected.kv))


def test_among_fifteen_strangers_the_logits_are_those_of_being_alone(case: Case) -> None:
    alone, company = case.stages(), Company(case.stages((2,)))
    open_request(alone, KEY, len(PROMPT) + NUM_TOKENS)
    logits = prefill(alone, KEY, PROMPT)
    assert torch.equal(company.prefill(), logits)
    answer: list[int] = []
    for step in range(TOKENS_IN_COMPANY):
        answer.append(choose(logits, SAMPLING, PROMPT, answer, len(PROMPT) + step))
        logits = decode(alone, [KEY], answer[-1:])[0]
        assert torch.equal(company.decode(answer[-1]), logits), step


def test_an_answer_replayed_from_token_50_goes_on_as_if_nothing_had_happened(
    case: Case, expected: Course
) -> None:
    stages, tokens = case.stages((3,)), expected.tokens
    logits = [replay(stages, tokens[:REPLAYED_FROM])]
    assert all(map(torch.equal, seen_kv(stages), expected.kv))
    logits += [decode(stages, [KEY], [token])[0] for token in tokens[REPLAYED_FROM - 1 : -1]]
    assert torch.equal(torch.stack(logits), expected.logits[REPLAYED_FROM - 1 :])

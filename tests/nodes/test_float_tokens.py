"""In float32 an answer is the same alone, in company, split and replayed, but for near ties."""

from collections.abc import Callable
from functools import partial
from typing import Final

import pytest
import torch

from broker.work import Sampling
from tests.support.company import (
    KEY,
    NUM_TOKENS,
    PROMPT,
    TOKENS_IN_COMPANY,
    Case,
    Company,
    demo_case,
    random_case,
    replayed,
)
from tests.support.oracle import Reference
from tests.support.stages import decode, generate, open_request, prefill
from tests.support.ties import assert_same_tokens

CASES: Final[dict[str, Callable[[], Case]]] = {
    **{
        family: partial(random_case, family, "float32")
        for family in ("llama", "mistral", "qwen2", "qwen3")
    },
    "demo": partial(demo_case, "float32"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


@pytest.fixture(scope="module")
def reference(case: Case) -> Reference:
    """The greedy answer of the whole model to the request alone."""
    stages = case.stages()
    open_request(stages, KEY, len(PROMPT) + NUM_TOKENS)
    tokens, gaps = [], []
    logits = prefill(stages, KEY, PROMPT)
    for _ in range(NUM_TOKENS):
        largest = logits.topk(2)
        tokens.append(int(largest.indices[0]))
        gaps.append(float(largest.values[0] - largest.values[1]))
        logits = decode(stages, [KEY], tokens[-1:])[0]
    return Reference(tokens, gaps)


@pytest.mark.parametrize("cuts", [(1,), (2, 4), (1, 2, 3, 4)])
def test_any_split_gives_the_tokens_of_the_whole_model(
    case: Case, reference: Reference, cuts: tuple[int, ...]
) -> None:
    tokens = generate(case.stages(cuts), PROMPT, NUM_TOKENS, Sampling())
    assert tokens == reference.tokens  # to the bit: the rows of each product are the same


def test_among_fifteen_strangers_the_tokens_are_those_of_being_alone(
    case: Case, reference: Reference
) -> None:
    company = Company(case.stages((2,)))
    known = reference.tokens[:TOKENS_IN_COMPANY]
    rows = [company.prefill(), *map(company.decode, known[:-1])]
    tokens = torch.stack(rows).argmax(1).tolist()
    assert_same_tokens(tokens, known, reference.gaps[:TOKENS_IN_COMPANY])


def test_an_answer_replayed_from_token_50_has_the_tokens_of_the_undisturbed_one(
    case: Case, reference: Reference
) -> None:
    tokens = replayed(case.stages((3,)), reference.tokens, Sampling())
    assert_same_tokens(tokens, reference.tokens, reference.gaps)

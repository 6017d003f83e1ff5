"""In int8 and int4 an answer is the same to the last bit, alone or not, split or not, replayed."""

import random
from typing import Final

import pytest
import torch

from broker.work import RequestKey, Sampling
from nodes.sampler import choose
from nodes.selftest import check_rows
from nodes.weights import LayerWeights
from tests.support.checkpoints import FAMILIES
from tests.support.stages import (
    build_stages,
    continue_answer,
    decode,
    generate,
    load_weights,
    open_request,
    prefill,
)

KEY: Final = RequestKey("r", 0)
PROMPT: Final = tuple(3 + (7 * i) % 250 for i in range(45))
NUM_TOKENS: Final = 80
REPLAYED_FROM: Final = 50
SAMPLING: Final = Sampling(temperature=0.8, top_p=0.9, seed=5)


@pytest.fixture(
    scope="module",
    params=[
        (family, weights)
        for family in ("llama3", "qwen2", "qwen3_moe")
        for weights in ("int8", "int4")
    ],
    ids="-".join,
)
def weights(request: pytest.FixtureRequest) -> LayerWeights:
    family, weights = request.param
    # Wide enough for the four-bit kernel, and no multiple of anything else.
    raw = {**FAMILIES[family], "hidden_size": 128, "intermediate_size": 384, "head_dim": 18}
    raw["moe_intermediate_size"] = 128
    return load_weights(raw, weights=weights)


@pytest.fixture(scope="module")
def expected(weights: LayerWeights) -> list[int]:
    return generate(build_stages(weights), PROMPT, NUM_TOKENS, SAMPLING)


def strangers(count: int) -> dict[RequestKey, tuple[int, ...]]:
    rng = random.Random(3)
    return {
        RequestKey(f"stranger-{i}", 0): tuple(rng.randrange(3, 259) for _ in range(3 + 11 * i))
        for i in range(count)
    }


def test_the_self_test_of_the_device_finds_no_difference_at_all(weights: LayerWeights) -> None:
    check_rows(build_stages(weights)[0], weights.weights)


@pytest.mark.parametrize("cuts", [(1,), (2, 4), (1, 2, 3, 4)])
def test_any_split_gives_the_tokens_of_the_whole_model(
    weights: LayerWeights, expected: list[int], cuts: tuple[int, ...]
) -> None:
    assert generate(build_stages(weights, cuts), PROMPT, NUM_TOKENS, SAMPLING) == expected


def test_among_fifteen_strangers_the_logits_are_those_of_being_alone(
    weights: LayerWeights,
) -> None:
    alone, together = build_stages(weights), build_stages(weights, (2,))
    others = strangers(15)
    for key, prompt in others.items():
        open_request(together, key, len(prompt) + NUM_TOKENS)
        prefill(together, key, prompt)
    for stages in (alone, together):
        open_request(stages, KEY, len(PROMPT) + NUM_TOKENS)
    logits = prefill(alone, KEY, PROMPT)
    assert torch.equal(prefill(together, KEY, PROMPT), logits)
    answer: list[int] = []
    keys = [*list(others)[:7], KEY, *list(others)[7:]]
    for step in range(NUM_TOKENS):
        answer.append(choose(logits, SAMPLING, PROMPT, answer, len(PROMPT) + step))
        logits = decode(alone, [KEY], answer[-1:])[0]
        tokens = [answer[-1] if key == KEY else 3 + (step * 31) % 250 for key in keys]
        assert torch.equal(decode(together, keys, tokens)[keys.index(KEY)], logits), step


def test_an_answer_replayed_from_token_50_goes_on_as_if_nothing_had_happened(
    weights: LayerWeights, expected: list[int]
) -> None:
    stages = build_stages(weights, (3,))
    known = expected[:REPLAYED_FROM]
    open_request(stages, KEY, len(PROMPT) + NUM_TOKENS)
    prefill(stages, KEY, PROMPT)
    hidden = stages[0].embed(known[:-1])
    for stage in stages:
        hidden = stage.replay(KEY, hidden, len(PROMPT))
    assert continue_answer(stages, KEY, PROMPT, known, NUM_TOKENS, SAMPLING) == expected

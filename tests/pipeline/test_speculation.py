"""Speculation changes when tokens come, never which: whole requests with and without it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Final

import msgspec.structs
import numpy as np
import pytest

from broker.codec import Buffer
from broker.events import LossKind
from broker.plan import Role
from broker.work import Data, RequestKey, Sampling, Step
from nodes.compute import JobCost
from nodes.device import DeviceCore
from nodes.outgoing import Timers
from nodes.sampler import scored
from nodes.speculation import MOST_PROPOSED
from nodes.tensors import from_bytes, meta_of, to_bytes
from tests.support.checkpoints import FAMILIES, random_tensors
from tests.support.pipeline import SmallFog, make_replica
from tests.support.stages import (
    MemoryTensors,
    build_stages,
    decode,
    load_weights,
    open_request,
    prefill,
)
from tests.support.ties import assert_same_tokens

CHUNK: Final = 16
NUM_TOKENS: Final = 56
EOS: Final = 40
# Texts of few tokens repeat themselves, and what is proposed comes true in part.
FEW: Final = {5: 100.0, 9: 100.0, EOS: 100.0}
CUTS: Final[Mapping[str, tuple[int, ...]]] = {"whole": (5,), "two": (3, 5), "three": (1, 3, 5)}

SAMPLINGS: Final[Mapping[str, Sampling]] = {
    "greedy": Sampling(),
    "greedy-few": Sampling(logit_bias=FEW),
    "drawn": Sampling(temperature=1.0, top_p=0.9, seed=3, logit_bias=FEW),
    "penalised": Sampling(
        logit_bias=FEW, repetition_penalty=1.02, presence_penalty=0.3, frequency_penalty=0.4
    ),
    "drawn-penalised": Sampling(
        temperature=0.8, top_k=3, min_p=0.05, seed=8, logit_bias=FEW, frequency_penalty=0.1
    ),
    "stops": Sampling(temperature=1.5, seed=2, logit_bias=FEW, eos_token_ids=(EOS,), min_tokens=20),
    "logprobs": Sampling(temperature=1.0, seed=9, logit_bias=FEW, top_logprobs=2),
}


def prompts() -> dict[str, tuple[int, ...]]:
    """Return a prompt for each sampling, with passages that come again."""
    rng = random.Random(7)
    found = {}
    for index, name in enumerate(SAMPLINGS):
        passage = [rng.randrange(3, 259) for _ in range(4 + 3 * index)]
        found[name] = (*passage, 17, *passage, 5, 9, 5, 9)
    return found


class Undisturbed:
    """Answers of the whole model, one request at a time and one token after the other."""

    def __init__(self, family: str, weights: str) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.gaps: dict[str, list[float]] = {}
        stages = build_stages(load_weights(FAMILIES[family], weights=weights), chunk_tokens=CHUNK)
        for name, prompt in prompts().items():
            key, sampling = RequestKey(name, 0), SAMPLINGS[name]
            open_request(stages, key, len(prompt) + NUM_TOKENS)
            tokens, gaps = self.tokens.setdefault(name, []), self.gaps.setdefault(name, [])
            logits = prefill(stages, key, prompt)
            while len(tokens) < NUM_TOKENS:
                position = len(prompt) + len(tokens)
                ids, scores = scored(logits, sampling, prompt, tokens, position)
                second, first = [-np.inf, *np.sort(scores)][-2:]
                gaps.append(float(first - second))
                tokens.append(int(ids[scores.argmax()]))
                if tokens[-1] in sampling.eos_token_ids:
                    break
                logits = decode(stages, [key], tokens[-1:])[0]
            stages[0].release(key)


@cache
def undisturbed(family: str, weights: str) -> Undisturbed:
    return Undisturbed(family, weights)


def fog_of(
    family: str, weights: str, cuts: Sequence[int], *, kv_tokens: int = 4096, **options: Any
) -> SmallFog:
    """Return a fog of one replica that decodes and one that may prefill for it."""
    devices = "abc"[: len(cuts)]
    replicas = [
        make_replica(cuts, devices, Role.BOTH, kv_tokens=kv_tokens),
        make_replica((2, 5), ("p", "q"), Role.PREFILL),
    ]
    source = MemoryTensors(random_tensors(FAMILIES[family]))
    return SmallFog(
        FAMILIES[family], source, replicas, chunk_tokens=CHUNK, weights=weights, **options
    )


def ask_all(fog: SmallFog, *, hand_over: bool = False) -> None:
    decode_replica, prefill_replica = fog.replicas
    for name, ids in prompts().items():
        fog.ask(
            name,
            ids,
            prefill_replica if hand_over else decode_replica,
            decode_replica,
            max_tokens=NUM_TOKENS,
            sampling=SAMPLINGS[name],
        )


def tokens_of(fog: SmallFog) -> dict[str, list[int]]:
    return {name: answer.tokens for name, answer in fog.answers.items()}


@pytest.mark.parametrize(
    ("family", "cuts"),
    # Of mistral, all layers have a window.
    [("qwen3", "whole"), ("qwen3", "two"), ("qwen3", "three"), ("mistral", "three")],
)
def test_in_int8_speculated_answers_have_the_tokens_of_undisturbed_ones(
    family: str, cuts: str
) -> None:
    fog = fog_of(family, "int8", CUTS[cuts])
    ask_all(fog)

    fog.run()

    expected = undisturbed(family, "int8")
    assert tokens_of(fog) == expected.tokens
    assert len(expected.tokens["stops"]) < NUM_TOKENS
    assert fog.answers["stops"].finish_reason == "stop"
    assert fog.answers["greedy"].finish_reason == "length"
    # Some came true and some did not.
    assert 0 < fog.speculated.accepted < fog.speculated.proposed
    assert not fog.rejected


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_in_float32_they_differ_only_where_two_tokens_scored_alike(family: str) -> None:
    fog = fog_of(family, "float32", CUTS["two"])
    ask_all(fog, hand_over=True)

    fog.run()

    expected = undisturbed(family, "float32")
    for name, tokens in tokens_of(fog).items():
        assert_same_tokens(tokens, expected.tokens[name], expected.gaps[name], name)
    assert fog.speculated.accepted > 0


@pytest.mark.parametrize("seed", range(2))
def test_a_lossy_repeating_reordering_network_changes_no_token(seed: int) -> None:
    fog = fog_of(
        "qwen3",
        "int8",
        CUTS["three"],
        disturb=random.Random(seed),
        timers=Timers(repeat=0.2, repeats=60),
    )
    ask_all(fog, hand_over=seed % 2 == 1)

    fog.run()

    assert tokens_of(fog) == undisturbed("qwen3", "int8").tokens
    assert fog.speculated.accepted > 0
    dropped = sum((stage.dropped for stage in fog.stages()), Counter())
    assert dropped["old step"] or dropped["stale"], "the network disturbed nothing"


@pytest.mark.parametrize("after", [3, 25])
def test_an_answer_continued_after_a_failure_has_the_tokens_of_the_undisturbed_one(
    after: int,
) -> None:
    fog = fog_of("mistral", "int8", CUTS["three"])
    ask_all(fog)
    moved: set[str] = set()
    while any(answer.finish_reason is None for answer in fog.answers.values()):
        fog.step()
        for name, answer in fog.answers.items():
            if name not in moved and len(answer.tokens) >= after and not answer.finish_reason:
                moved.add(name)
                fog.again(name)
    assert tokens_of(fog) == undisturbed("mistral", "int8").tokens
    assert len(moved) >= len(SAMPLINGS) - 1
    assert fog.speculated.accepted > 0


def test_where_room_is_short_answers_go_back_to_the_queue_and_nothing_is_lost() -> None:
    fog = fog_of("qwen3", "int8", CUTS["two"], kv_tokens=192)
    ask_all(fog)

    fog.run()

    assert tokens_of(fog) == undisturbed("qwen3", "int8").tokens
    assert fog.speculated.accepted > 0
    losses = {lost.kind for answer in fog.answers.values() for lost in answer.lost}
    assert losses == {LossKind.PREEMPTED}, "a stage had less room than its master counted"


def test_switched_off_nothing_is_proposed_and_the_tokens_are_the_same() -> None:
    num_steps = []
    for most_proposed in (0, MOST_PROPOSED):
        costs: list[JobCost] = []
        fog = fog_of("qwen3", "int8", CUTS["two"], most_proposed=most_proposed, pace=costs.append)
        ask_all(fog)
        fog.run()
        assert tokens_of(fog) == undisturbed("qwen3", "int8").tokens
        assert (fog.speculated.proposed > 0) == (most_proposed > 0)
        num_steps.append(sum(cost.is_decode for cost in costs))
    assert num_steps[1] < num_steps[0]


def test_log_probabilities_come_with_each_token() -> None:
    fog = fog_of("qwen3", "int8", CUTS["two"])
    ask_all(fog)
    last = fog.devices["b"].stages[fog.replicas[0].id, 1]
    key = RequestKey("logprobs", 0)
    while (request := last.requests.get(key)) is None or len(request.generated) < 30:
        fog.step()
    assert sorted(request.logprobs) == list(range(len(request.generated)))


class EarlierDevice(DeviceCore):
    """A device of an earlier minor version: of rows of one request it runs the first."""

    def handle(
        self, sender: str, stage: tuple[str, int], header: Data, tensor: Buffer, now: float
    ) -> None:
        if isinstance(header, Step):
            keys = [None, *(row.key for row in header.rows)]
            kept = [index for index, (one, other) in enumerate(pairwise(keys)) if one != other]
            hidden = from_bytes(tensor, header.tensor)[kept]
            rows = [header.rows[index] for index in kept]
            header = msgspec.structs.replace(header, rows=rows, tensor=meta_of(hidden))
            tensor = to_bytes(hidden)
        super().handle(sender, stage, header, tensor, now)


@pytest.mark.parametrize("device", ["b", "c"])
def test_a_stage_of_an_earlier_version_in_the_ring_changes_no_token(device: str) -> None:
    fog = fog_of("qwen3", "int8", CUTS["three"])
    fog.devices[device].__class__ = EarlierDevice
    ask_all(fog)

    fog.run()

    assert tokens_of(fog) == undisturbed("qwen3", "int8").tokens
    assert fog.speculated.accepted == 0
    # Each request tries it until one id would have come true.
    assert fog.speculated.proposed > 0

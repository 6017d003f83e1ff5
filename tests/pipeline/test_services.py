"""Whole services in one process: the real loops, codec and engine, on a disturbed broker."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from broker.plan import Role
from broker.transport import Publication
from broker.work import Sampling
from gateway.requests import Generation
from nodes.outgoing import Timers
from tests.support.checkpoints import manifest_of, write_checkpoint
from tests.support.oracle import Oracle
from tests.support.pipeline import make_replica
from tests.support.real_fog import MemoryFog
from tests.support.ties import assert_same_tokens

DEVICES = ("pre-0", "pre-1", "dec-0", "dec-1", "dec-2")
LENGTHS = (3, 33, 150, 64, 7, 96)
NUM_TOKENS = 24


class Disturbance:
    """Loses, repeats, delays and reorders 5 % of data messages each, and counts."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.done: Counter[str] = Counter()

    def __call__(self, publication: Publication) -> Sequence[tuple[float, Publication]]:
        draw = self._rng.random()
        if draw < 0.05:
            self.done["lost"] += 1
            return []
        if draw < 0.10:
            self.done["repeated"] += 1
            return [(0.0, publication), (self._rng.uniform(0.0, 0.2), publication)]
        if draw < 0.15:
            self.done["late"] += 1
            return [(self._rng.uniform(0.05, 0.3), publication)]
        if draw < 0.20:
            # A little later than what was sent after it.
            self.done["overtaken"] += 1
            return [(0.005, publication)]
        return [(0.0, publication)]


def prompts() -> list[tuple[int, ...]]:
    rng = random.Random(5)
    return [tuple(rng.randrange(3, 259) for _ in range(length)) for length in LENGTHS]


@pytest.mark.parametrize("seed", [None, 1, 2])
async def test_services_on_a_memory_broker_give_the_tokens_of_transformers(
    tmp_path: Path, seed: int | None
) -> None:
    write_checkpoint(tmp_path / "model", "llama3")
    oracle = Oracle(tmp_path / "model")
    disturbance = Disturbance(seed) if seed is not None else None
    fog = MemoryFog(tmp_path, DEVICES, disturbance, Timers(repeat=0.2, repeats=40))
    await fog.start()
    try:
        await fog.serve(
            manifest_of(tmp_path / "model", "lossy"),
            [
                make_replica((2, 5), DEVICES[:2], Role.PREFILL),
                make_replica((1, 3, 5), DEVICES[2:], Role.DECODE),
            ],
        )
        answers = await asyncio.gather(
            *(
                fog.answer(
                    Generation(
                        request_id=f"q{i}",
                        prompt_ids=ids,
                        max_tokens=NUM_TOKENS,
                        sampling=Sampling(ignore_eos=True),
                    )
                )
                for i, ids in enumerate(prompts())
            )
        )
    finally:
        await fog.stop()
    for ids, answer in zip(prompts(), answers, strict=True):
        reference = oracle.generate(ids, NUM_TOKENS)
        assert_same_tokens(answer, reference.tokens, reference.gaps)
    if disturbance is not None:
        assert min(disturbance.done[kind] for kind in ("lost", "repeated", "late")) > 3


async def test_an_answer_whose_kv_travelled_in_whole_numbers_is_the_same_each_time(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path, "llama")
    manifest = manifest_of(tmp_path, "packed", kv_transfer="int8")
    replicas = [
        make_replica((2, 5), DEVICES[:2], Role.PREFILL),
        make_replica((1, 3, 5), DEVICES[2:], Role.DECODE),
    ]
    asked = Generation(
        request_id="",
        prompt_ids=prompts()[2],
        max_tokens=NUM_TOKENS,
        sampling=Sampling(ignore_eos=True),
    )
    fog = MemoryFog(tmp_path, DEVICES)
    await fog.start()
    try:
        await fog.serve(manifest, replicas)
        answers = [await fog.answer(replace(asked, request_id=name)) for name in "ab"]
    finally:
        await fog.stop()
    assert len(answers[0]) == NUM_TOKENS
    assert answers[0] == answers[1]

"""The master gives rows: never more than slots, in order, and to everybody in the end."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from msgspec import structs

from broker.events import Granted, GrantState, LossKind, Lost, Waiting
from broker.placement import KV_BLOCK_TOKENS, WAITING_ROWS
from broker.plan import Replica, Role
from broker.work import (
    FirstToken,
    HandedOver,
    KvComplete,
    Open,
    RequestKey,
    Reserve,
    ReserveKind,
    Sampling,
    StepDone,
    StepResult,
)
from nodes.conductor import Conductor
from nodes.groups import Group
from nodes.outgoing import Timers, ToGateway, ToStage
from tests.support.pipeline import make_replica

PREFILL = make_replica((5,), ("p",), Role.PREFILL)
CHUNK = 16


@dataclass
class Asked:
    """One request as its gateway knows it."""

    kind: ReserveKind
    prompt: int
    answer: int
    known: int
    ready_at: float = 0.0
    is_open: bool = False


@dataclass
class World:
    """A decode master, the gateway and prefill replica that it hears of, and its own ring.

    Attributes:
        complete, first_rows: Requests in the order in which they had all, and their first row.
        complete_at_grants: How many were complete and not finished when each grant was given.
    """

    replica: Replica
    rng: random.Random
    now: float = 0.0
    asked: dict[RequestKey, Asked] = field(default_factory=dict)
    complete: list[RequestKey] = field(default_factory=list)
    first_rows: list[RequestKey] = field(default_factory=list)
    complete_at_grants: list[int] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    losses: list[Lost] = field(default_factory=list)
    handed_over: list[RequestKey] = field(default_factory=list)
    said: list[tuple[float, RequestKey]] = field(default_factory=list)
    ring: list[tuple[float, Group]] = field(default_factory=list)

    def __post_init__(self) -> None:
        replicas = {one.id: one for one in (self.replica, PREFILL)}
        self.master = Conductor(self.replica, Timers(), CHUNK, 4096, replicas.get)

    def ask(self, key: RequestKey, asked: Asked) -> None:
        self.asked[key] = asked
        message = Reserve(
            request_id=key.request_id,
            attempt=key.attempt,
            gateway="g",
            kind=asked.kind,
            known_tokens=asked.known,
            max_tokens=asked.prompt + asked.answer - asked.known,
            queue_seconds=1e9,
        )
        self.master.reserve(message, self.now)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for key, asked in list(self.asked.items()):
            if asked.is_open and asked.ready_at <= self.now:
                asked.ready_at = float("inf")
                self._arrive(key, asked)
        for due, group in [item for item in self.ring if item[0] <= self.now]:
            self.ring.remove((due, group))
            self._step(group)
        self.master.tick(self.now)
        self.launch()

    def launch(self) -> None:
        """Form groups, and take in what the master says."""
        for group in self.master.launch(self.now):
            for row in group.rows:
                if row.key not in self.first_rows:
                    self.first_rows.append(row.key)
            self.ring.append((self.now + self.rng.uniform(0.1, 0.3), group))
        out, self.master.out = self.master.out, []
        for message in out:
            match message:
                case ToGateway(header=Granted() as granted):
                    if granted.state is GrantState.GRANTED:
                        self._open(granted.key)
                case ToGateway(header=Waiting() as waiting):
                    self.said.append((self.now, waiting.key))
                case ToGateway(header=Lost() as lost):
                    self._lost(lost)
                case ToStage(header=HandedOver() as handed) if handed.complete:
                    self.handed_over.append(handed.key)

    def _open(self, key: RequestKey) -> None:
        asked = self.asked[key]
        asked.is_open = True
        self.complete_at_grants.append(len(self.complete) - len(self.finished))
        asked.ready_at = self.now + self.rng.uniform(0.2, 3.0)
        is_both = asked.kind is ReserveKind.BOTH
        opened = Open(
            request_id=key.request_id,
            attempt=key.attempt,
            gateway="g",
            prefill_replica=self.replica.id if is_both else PREFILL.id,
            decode_replica=self.replica.id,
            num_prompt_tokens=asked.prompt,
            num_generated_tokens=asked.known - asked.prompt,
            max_tokens=asked.answer,
            sampling=Sampling(),
        )
        assert self.master.open(opened, self.now)

    def _arrive(self, key: RequestKey, asked: Asked) -> None:
        """First token and KV, in any order, and one of them twice."""
        token = FirstToken(
            request_id=key.request_id, attempt=key.attempt, position=asked.known, token_id=1
        )
        parts: list[FirstToken | KvComplete] = [token, token]
        asked.known += 1
        if asked.kind is ReserveKind.DECODE:
            parts += [
                KvComplete(request_id=key.request_id, attempt=key.attempt, stage=stage)
                for stage in range(len(self.replica.stages))
            ]
        self.rng.shuffle(parts)
        self.complete.append(key)
        for part in parts:
            if isinstance(part, FirstToken):
                self.master.first_token(part, self.now)
            else:
                self.master.kv_complete(part, self.now)
        self.launch()

    def _step(self, group: Group) -> None:
        results = []
        for row in group.rows:
            asked = self.asked.get(row.key)
            if asked is None:
                continue  # Preempted meanwhile.
            asked.known += 1
            is_last = asked.known == asked.prompt + asked.answer
            reason = "length" if is_last else None
            results.append(StepResult(row.request_id, row.attempt, row.position, 1, reason))
            if is_last:
                self.finished.add(row.request_id)
                del self.asked[row.key]
        self.master.step_done(StepDone(group=group.number, results=results), self.now)

    def _lost(self, lost: Lost) -> None:
        self.losses.append(lost)
        asked = self.asked.pop(lost.key)
        asked.is_open = False
        self.ask(RequestKey(lost.request_id, lost.attempt + 1), asked)


def world(seed: int, *, slots: int, kv_tokens: int) -> World:
    replica = make_replica((2, 5), ("d", "e"), Role.BOTH, slots=slots, kv_tokens=kv_tokens)
    return World(structs.replace(replica, prefill_slots=2), random.Random(seed))


@pytest.mark.parametrize("seed", range(12))
def test_rows_never_exceed_slots_nor_grants_memory_and_everybody_finishes(seed: int) -> None:
    rng = random.Random(100 + seed)
    run = world(seed, slots=rng.randint(1, 4), kv_tokens=rng.choice([256, 512, 2048]))
    slots = run.replica.slots
    for number in range(30):
        prompt, answer = rng.randint(1, 80), rng.randint(2, 60)
        kind = rng.choice([ReserveKind.DECODE, ReserveKind.DECODE, ReserveKind.BOTH])
        run.ask(RequestKey(f"r{number}", 0), Asked(kind, prompt, answer, prompt))

    while len(run.finished) < 30:
        run.advance(0.1)
        assert run.now < 1000, f"starving: {run.asked}"
        assert run.master.num_active <= slots
        assert run.master.groups.num_rows <= slots
        assert run.master.reservations.used_tokens <= run.replica.kv_tokens

    assert all(lost.kind is LossKind.PREEMPTED for lost in run.losses)
    assert run.master.live == []
    assert run.master.reservations.used_tokens == 0


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_given_in_the_order_in_which_requests_are_complete(seed: int) -> None:
    run = world(seed, slots=2, kv_tokens=640)
    for number in range(20):
        run.ask(RequestKey(f"r{number}", 0), Asked(ReserveKind.DECODE, 10, 86, 10))

    while len(run.finished) < 20:
        run.advance(0.1)
        assert run.now < 1000, f"starving: {run.asked}"

    assert run.first_rows == run.complete
    # Both slots were full, and more were granted until two waited.
    assert max(run.complete_at_grants) == 2 + WAITING_ROWS - 1


@pytest.mark.parametrize("seed", range(4))
def test_prompts_that_come_ahead_of_slots_cause_no_preemption(seed: int) -> None:
    # Five blocks each in the end, one at first: thirteen hold two whole answers and no third.
    run = world(seed, slots=2, kv_tokens=13 * KV_BLOCK_TOKENS)
    for number in range(8):
        run.ask(RequestKey(f"r{number}", 0), Asked(ReserveKind.DECODE, 10, 140, 10))

    while len(run.finished) < 8:
        run.advance(0.1)
        assert run.now < 1000, f"starving: {run.asked}"

    assert run.losses == []


def test_a_complete_request_without_a_row_frees_its_prefill_copy_and_is_said_to_wait() -> None:
    run = world(0, slots=1, kv_tokens=2048)
    first, second = RequestKey("first", 0), RequestKey("second", 0)
    run.ask(first, Asked(ReserveKind.DECODE, 10, 200, 10))
    run.launch()
    run.advance(3.0)
    run.ask(second, Asked(ReserveKind.DECODE, 10, 20, 10))
    run.launch()
    run.advance(3.0)

    assert run.handed_over[-1] == second
    assert run.said == [(6.0, second)]
    for _ in range(102):
        run.advance(0.1)
    assert [key for _, key in run.said] == [second] * 3
    assert run.first_rows == [first]


def test_a_released_request_leaves_the_queue_for_a_row_and_the_next_one_gets_it() -> None:
    run = world(0, slots=1, kv_tokens=2048)
    keys = [RequestKey(f"r{number}", 0) for number in range(1 + WAITING_ROWS)]
    for key in keys:
        run.ask(key, Asked(ReserveKind.DECODE, 10, 500, 10))
    run.launch()
    for _ in range(40):
        run.advance(0.1)
    running, gone, next_one = run.complete

    for key in (gone, running):
        run.master.release(key, run.now, "the client left")
        del run.asked[key]
    run.launch()

    assert run.first_rows == [running, next_one]
    assert set(run.master.live) == {next_one}

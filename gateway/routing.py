"""Which prefill and which decode replica a request is bound to. Pure functions.

A replica's load is what this gateway knows: its own requests exactly, those of other
gateways from the last answer of the master. The masters decide; a wrong belief here costs a
round trip, never a promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from broker.grouping import best_grouping
from broker.plan import Replica, Role
from broker.queueing import WORTH_WAITING, slot_wait_tokens
from broker.room import NOTHING, Usage, has_room, has_slot, sends_ahead, slots_of
from broker.work import ReserveKind

UNKNOWN_PREFILL_RATE: Final = 100.0
"""Prompt tokens per second of a replica without any prediction or measurement."""
UNKNOWN_STEP_SECONDS: Final = 0.1
"""Seconds per decode step of a replica without any prediction or measurement."""


class Policy(StrEnum):
    """How a pair is chosen."""

    LEAST_ADDED = "least-added"
    """Least expected finish plus what the replicas' other requests lose by one more beside them;
    a pair that cannot grant yet is waited for where that is worth it."""
    LEAST_FINISH = "least-finish"
    """The same by the request's own finish alone."""
    JSQ = "jsq"
    """The paper's: the shortest estimated waits when a request arrives, for good."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request needs.

    Attributes:
        known_tokens: Prompt plus tokens generated so far.
        max_tokens: Tokens that may still come.
        expected_tokens: Tokens that will probably still come.
    """

    known_tokens: int
    max_tokens: int
    expected_tokens: float

    @property
    def total_tokens(self) -> int:
        """KV positions that the request may grow to."""
        return self.known_tokens + self.max_tokens


@dataclass(frozen=True, slots=True)
class Load:
    """One complete replica as the gateway sees it.

    Attributes:
        own: Held by this gateway's requests.
        foreign: Held by others, by the master's last answer.
        generated: Decode steps that each of our decoding requests had here, most first.
        queued: Requests of ours that wait for this very replica to decode them; they hold
            nothing yet. By the policy `jsq` alone.
        prefill_backlog_tokens: Prompt tokens of ours that are not through yet.
        prefill_overhead_seconds: Measured time of a prompt apart from its length.
        prefill_factor: Measured over predicted seconds per prompt token.
        step_factor: Measured over predicted seconds per decode step.
        is_suspect: Lost a request a moment ago; taken only when there is no other.
        held_tokens: Leading positions of the request's prompt that it has probably kept.
    """

    replica: Replica
    own: Usage = NOTHING
    foreign: Usage = NOTHING
    generated: tuple[int, ...] = ()
    queued: int = 0
    prefill_backlog_tokens: float = 0.0
    prefill_overhead_seconds: float = 0.0
    prefill_factor: float = 1.0
    step_factor: float = 1.0
    is_suspect: bool = False
    held_tokens: int = 0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Measured rate of a long prompt."""
        return predicted_prefill_rate(self.replica) / self.prefill_factor

    def prefill_seconds(self, num_tokens: float) -> float:
        """Return the time of a prompt that is alone in the replica."""
        return self.prefill_overhead_seconds + num_tokens / self.prefill_tokens_per_second

    def prompt_seconds(self, demand: Demand) -> float:
        """Return the time of what is to be computed of a request's known tokens, likewise."""
        return self.prefill_seconds(demand.known_tokens - self.held_tokens)

    def step_seconds(self, num_rows: int) -> float:
        """Measured time from one token of a request to its next, with that many bound here."""
        rows = min(num_rows, slots_of(self.replica))
        return predicted_step_seconds(self.replica, rows) * self.step_factor


@dataclass(frozen=True, slots=True)
class Pair:
    """Where a request goes; equal loads mean that one replica does both."""

    prefill: Load
    decode: Load

    @property
    def is_single(self) -> bool:
        """Whether one replica does both, so that no KV moves."""
        return self.prefill.replica.id == self.decode.replica.id


def predicted_prefill_rate(replica: Replica) -> float:
    """Return prompt tokens per second as planned."""
    return replica.predicted.prefill_tokens_per_second or UNKNOWN_PREFILL_RATE


def predicted_step_seconds(replica: Replica, num_rows: int) -> float:
    """Return seconds per decode step as planned, with ``num_rows`` requests at once."""
    if any(stage.decode_seconds for stage in replica.stages):
        return best_grouping(replica.stages, max(num_rows, 1)).step_seconds
    return (
        replica.predicted.tpot_seconds
        or sum(stage.predicted_seconds + stage.hop_seconds for stage in replica.stages)
        or UNKNOWN_STEP_SECONDS
    )


def pairs(loads: Sequence[Load]) -> list[Pair]:
    """Return every pair that roles allow, in plan order, single replicas first.

    Without a replica for one of the roles, any replica does both at once: a role steers
    routing, never ability. So one that decodes and has kept how the prompt begins may also
    compute the rest.
    """
    prefills = [load for load in loads if load.replica.role is not Role.DECODE]
    decodes = [load for load in loads if load.replica.role is not Role.PREFILL]
    if not prefills or not decodes:
        return [Pair(load, load) for load in loads]
    found = [Pair(p, d) for p in prefills for d in decodes]
    found += [Pair(d, d) for d in decodes if d.held_tokens and d.replica.role is Role.DECODE]
    return sorted(found, key=lambda pair: not pair.is_single)


def largest_request_tokens(replicas: Sequence[Replica]) -> int:
    """Return the most tokens, prompt plus answer, that some allowed pair can hold; 0: none."""
    held = (
        min(pair.prefill.replica.kv_tokens, pair.decode.replica.kv_tokens)
        for pair in pairs([Load(replica) for replica in replicas])
    )
    return max(held, default=0)


def full_replicas(pair: Pair, demand: Demand, *, own_only: bool = False) -> set[str]:
    """Return the replicas of a pair that probably cannot grant now.

    With ``own_only`` as if there were no other gateways, of which nothing is known for sure.
    """
    return {
        load.replica.id
        for load, usage, kind in _uses(pair, own_only=own_only)
        if not (
            _has_slot(pair, load.replica, usage, kind)
            and _has_room(load.replica, usage, kind, demand)
        )
    }


def can_grant(pair: Pair, demand: Demand, *, own_only: bool = False) -> bool:
    """Whether both masters can probably grant now; ``own_only`` as in `full_replicas`."""
    return not full_replicas(pair, demand, own_only=own_only)


def has_memory(pair: Pair, demand: Demand) -> bool:
    """Whether both replicas have KV room beside our own requests, whatever their slots."""
    return all(
        _has_room(load.replica, usage, kind, demand)
        for load, usage, kind in _uses(pair, own_only=True)
    )


def _has_slot(pair: Pair, replica: Replica, usage: Usage, kind: ReserveKind) -> bool:
    if kind is ReserveKind.DECODE and not sends_ahead(pair.prefill.replica.role, replica.role):
        return usage.decodes < slots_of(replica)
    return has_slot(replica, usage, kind)


def _has_room(replica: Replica, usage: Usage, kind: ReserveKind, demand: Demand) -> bool:
    return has_room(replica, usage, kind, demand.known_tokens, demand.max_tokens)


def _uses(pair: Pair, *, own_only: bool) -> Iterator[tuple[Load, Usage, ReserveKind]]:
    kinds = [(pair.prefill, ReserveKind.PREFILL), (pair.decode, ReserveKind.DECODE)]
    if pair.is_single:
        kinds = [(pair.decode, ReserveKind.BOTH)]
    for load, kind in kinds:
        yield load, load.own if own_only else load.own + load.foreign, kind


def prefill_wait_seconds(load: Load) -> float:
    """Return the time until a new prompt begins here, as far as our own prompts tell."""
    return load.prefill_backlog_tokens / load.prefill_tokens_per_second


def decode_wait_seconds(load: Load, demand: Demand) -> float:
    """Return the time until a decode slot is free, every answer having the expected length."""
    slots = slots_of(load.replica)
    num_requests = (load.own + load.foreign).decodes + load.queued
    steps = slot_wait_tokens(slots, num_requests, load.generated, demand.expected_tokens)
    return steps * load.step_seconds(slots)


def finish_seconds(pair: Pair, demand: Demand) -> float:
    """Return the expected seconds until the answer's last token.

    Moving KV is left out: it overlaps prefill, layer by layer. So does waiting for a row,
    except where one replica does both: there a prompt waits for a slot.
    """
    decode = pair.decode
    rows = (decode.own + decode.foreign).decodes + 1
    prompt = prefill_wait_seconds(pair.prefill) + pair.prefill.prompt_seconds(demand)
    wait = decode_wait_seconds(decode, demand)
    begin = prompt + wait if pair.is_single else max(prompt, wait)
    return begin + demand.expected_tokens * decode.step_seconds(rows)


def lost_seconds(pair: Pair, demand: Demand) -> float:
    """Return what the requests that decode in a pair lose, together, by one more.

    A prompt stands between their tokens while it is prefilled beside them, and a larger
    batch takes longer steps; on average they are half-way through their answers.
    """
    prefill, decode = pair.prefill, pair.decode
    beside = min((prefill.own + prefill.foreign).complete, slots_of(prefill.replica))
    rows = (decode.own + decode.foreign).decodes
    slower = decode.step_seconds(rows + 1) - decode.step_seconds(rows) if rows else 0.0
    return beside * prefill.prompt_seconds(demand) + rows * slower * demand.expected_tokens / 2


def shortest_queues(loads: Sequence[Load], demand: Demand) -> Pair | None:
    """Return the pair with the least estimated waits, room or not; None: none can hold it.

    The paper's rule. Equal waits go to the faster prefill replica, then to the pair that moves
    no KV, then to the faster decode replica. One that does both gives its requests to
    replicas that only decode, never to another that does both.
    """
    order = {load.replica.id: index for index, load in enumerate(loads)}
    allowed = [
        pair
        for pair in _fitting(loads, demand)
        if pair.is_single or pair.prefill.replica.role is not pair.decode.replica.role
    ]

    def key(pair: Pair) -> tuple[float, ...]:
        decode = pair.decode
        return (
            _suspects(pair),
            prefill_wait_seconds(pair.prefill) + decode_wait_seconds(decode, demand),
            pair.prefill.prefill_seconds(demand.known_tokens),
            order[pair.prefill.replica.id],
            not pair.is_single,
            decode.step_seconds((decode.own + decode.foreign).decodes + decode.queued + 1),
        )

    return min(allowed, key=key, default=None)


def choose_pair(
    loads: Sequence[Load], demand: Demand, policy: Policy = Policy.LEAST_ADDED
) -> Pair | None:
    """Return the pair of complete replicas to bind a request to now; None: wait.

    For late binding; by the policy `jsq` a request stays with its `shortest_queues`.

    None means that no pair can ever hold it, that our own requests fill every pair that can,
    or that one of these will finish so much earlier than the others that it is worth the
    wait. Ties go to the earlier pair of `pairs`, so equal knowledge gives equal choices.
    """
    fitting = _fitting(loads, demand)
    lost = lost_seconds if policy is Policy.LEAST_ADDED else _nothing_lost

    def seconds(pair: Pair) -> float:
        return finish_seconds(pair, demand) + lost(pair, demand)

    # A pair that our own requests fill cannot grant before one of them ends, and then we
    # know at once. A pair that others fill is asked: its master queues us fairly.
    candidates = [pair for pair in fitting if can_grant(pair, demand, own_only=True)]
    best = min(
        candidates,
        key=lambda pair: (_suspects(pair), not can_grant(pair, demand), seconds(pair)),
        default=None,
    )
    if best is None:
        return None
    is_worth_waiting = any(
        _suspects(pair) <= _suspects(best)
        and WORTH_WAITING * seconds(pair) < seconds(best)
        and has_memory(pair, demand)
        for pair in fitting
        if pair not in candidates
    )
    return None if is_worth_waiting else best


def _fitting(loads: Sequence[Load], demand: Demand) -> list[Pair]:
    return [
        pair
        for pair in pairs(loads)
        if demand.total_tokens <= min(pair.prefill.replica.kv_tokens, pair.decode.replica.kv_tokens)
    ]


def _suspects(pair: Pair) -> int:
    return pair.prefill.is_suspect + (pair.decode.is_suspect and not pair.is_single)


def _nothing_lost(pair: Pair, demand: Demand) -> float:
    return 0.0

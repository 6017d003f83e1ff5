"""Which replicas a request is sent to: pure functions from the replicas' states to a pair.

A rule gives a replica a number, smaller being better; a routing says which rule picks the
prefill replica, which the decode replica, and when. Rules see what a router can see: queues
and planned speeds, never the true speeds nor (Splitwise's reservation apart) an answer's
length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, TypeVar

from broker.placement import KV_BLOCK_TOKENS
from broker.plan import Role


@dataclass(frozen=True, slots=True)
class Demand:
    """What a router knows of a request.

    Attributes:
        prompt_tokens: To prefill, with the tokens of earlier attempts.
        expected_tokens: That the answer will probably still have.
        reserved_tokens: KV positions that it reserves where it decodes.
        is_growing: Whether the reservation is for what it has, not for all it will need.
    """

    prompt_tokens: int
    expected_tokens: float
    reserved_tokens: int
    is_growing: bool = False


class ReplicaState(Protocol):
    """What a router knows of a live replica.

    Attributes:
        pool: Role that it plays now; differs from ``role`` only with a mixed pool.
        slots: Requests decoded at once; infinite where only memory limits.
        prefill_slots: Prompts that late binding grants at once.
        kv_tokens: KV positions that it has.
        held_tokens: KV positions in use or granted.
        reserved_tokens: KV positions that all its decoding requests will need.
        num_prompts: Prompts bound to it and not handed over yet.
        pending_prompt_tokens: Of these, positions not through prefill.
        num_decodes: Requests bound to decode here, or decoding.
        num_active: Of these, decoding.
        prefill_tokens_per_second: Planned rate of prompts, its pipeline full.
        decode_tokens_per_second: Planned rate of all slots.
    """

    @property
    def id(self) -> str: ...
    @property
    def role(self) -> Role: ...
    @property
    def pool(self) -> Role: ...
    @property
    def slots(self) -> float: ...
    @property
    def prefill_slots(self) -> int: ...
    @property
    def kv_tokens(self) -> float: ...
    @property
    def held_tokens(self) -> float: ...
    @property
    def reserved_tokens(self) -> int: ...
    @property
    def num_prompts(self) -> int: ...
    @property
    def pending_prompt_tokens(self) -> int: ...
    @property
    def num_decodes(self) -> int: ...
    @property
    def num_active(self) -> int: ...
    @property
    def prefill_tokens_per_second(self) -> float: ...
    @property
    def decode_tokens_per_second(self) -> float: ...
    def prompt_seconds(self, num_tokens: int) -> float:
        """Return the planned time of a prompt that waits for nothing, beside its streams."""
        ...

    def step_seconds(self, num_rows: int) -> float:
        """Return the planned time from one token of a request to its next."""
        ...

    def generated_tokens(self) -> Sequence[int]:
        """Return the tokens that each decoding request has, most first."""
        ...


StateT = TypeVar("StateT", bound=ReplicaState)
Rule = Callable[[ReplicaState, Demand], float]


# --- rules --------------------------------------------------------------------------------


def estimated_prefill_wait(state: ReplicaState, demand: Demand) -> float:
    """Return seconds until a new prompt begins: pending positions over the planned rate."""
    return state.pending_prompt_tokens / state.prefill_tokens_per_second


def estimated_decode_wait(state: ReplicaState, demand: Demand) -> float:
    """Return seconds until a decode slot is free, every answer having the expected length.

    With slots that each become free after r_i tokens and q requests ahead that take m
    tokens each, the next starts at the (q + 1)-th smallest of ``r_i + j m``. No r_i exceeds
    m, so that is ``r[q % slots] + (q // slots) m``.
    """
    if math.isinf(state.slots):
        return 0.0
    slots = int(state.slots)
    # Waiting requests take the free slots first, and then those that become free.
    ahead = state.num_decodes - slots
    if ahead < 0:
        return 0.0
    done = state.generated_tokens()
    mean = max(demand.expected_tokens, 1.0)
    lap, index = divmod(ahead, slots)
    left = max(mean - done[index], 0.0) if index < len(done) else mean
    return (left + lap * mean) * state.step_seconds(slots)


def pending_tokens(state: ReplicaState, demand: Demand) -> float:
    """Splitwise's queue of a prompt machine: prompt positions, and 1 for each decode."""
    return state.pending_prompt_tokens + state.num_decodes


def reserved_memory(state: ReplicaState, demand: Demand) -> float:
    """Splitwise's load of a token machine: KV positions that its requests will need."""
    return state.reserved_tokens


def reserved_seconds(state: ReplicaState, demand: Demand) -> float:
    """Reserved memory over planned decode speed: what Splitwise lacks on unequal machines."""
    return state.reserved_tokens / state.decode_tokens_per_second


def prompt_count(state: ReplicaState, demand: Demand) -> float:
    """Return the prompts at the replica."""
    return state.num_prompts


def decode_count(state: ReplicaState, demand: Demand) -> float:
    """Return the requests that decode there, or will."""
    return state.num_decodes


# --- routings -----------------------------------------------------------------------------


class Bind(StrEnum):
    """When a request is given its replicas."""

    ARRIVAL = "arrival"
    """Both when it arrives, so that KV can move while prefill runs."""
    AFTER_PREFILL = "after-prefill"
    """Prefill when it arrives, decode after that."""
    LATE = "late"
    """Both when both can grant: one first-come queue (design, section 4)."""
    JUST_IN_TIME = "just-in-time"
    """As late, and also when a slot will probably be free once the KV is there: no slot then
    waits for a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedPool:
    """Splitwise's limits of its pools (reference simulator)."""

    max_pending_tokens: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How requests find their replicas.

    Attributes:
        prefill: Picks the prefill replica; unused by late binding.
        decode: Picks the decode replica; unused by late binding.
        ties_by_speed: Equals go to the faster replica, else to the first in the plan.
        mixed_pool: Borrow from the other pool as Splitwise does; None: pools never change.
    """

    prefill: Rule = estimated_prefill_wait
    decode: Rule = estimated_decode_wait
    bind: Bind = Bind.ARRIVAL
    ties_by_speed: bool = True
    mixed_pool: MixedPool | None = None

    def __post_init__(self) -> None:
        if self.mixed_pool is not None and self.bind is not Bind.ARRIVAL:
            raise ValueError("a mixed pool chooses both machines when a request arrives")


PAPER_JSQ: Final = Routing()
"""The paper: shortest estimated waiting time, both replicas at arrival."""
JSQ_COUNT: Final = Routing(prefill=prompt_count, decode=decode_count)
"""Fewest requests."""
SPLITWISE: Final = Routing(prefill=pending_tokens, decode=reserved_memory, ties_by_speed=False)
"""Splitwise's pools: fewest pending tokens, least reserved memory, blind to speed."""
SPLITWISE_SPEED: Final = Routing(prefill=estimated_prefill_wait, decode=reserved_seconds)
"""The same, divided by planned speeds."""
SPLITWISE_MIXED: Final = Routing(
    prefill=pending_tokens,
    decode=reserved_memory,
    ties_by_speed=False,
    mixed_pool=MixedPool(),
)
"""Splitwise's pools with its mixed pool."""
LATE_BINDING: Final = Routing(bind=Bind.LATE)
"""Ours: one queue, bound when both can grant, least expected finish."""
JUST_IN_TIME: Final = Routing(bind=Bind.JUST_IN_TIME)
"""Ours, with prompts prefilled ahead of the slots that become free."""


# --- choices ------------------------------------------------------------------------------


def prefill_candidates(states: Iterable[StateT]) -> list[StateT]:
    """Return those whose role lets them prefill; all when none's does."""
    states = list(states)
    return [s for s in states if s.role is not Role.DECODE] or states


def decode_candidates(states: Iterable[StateT]) -> list[StateT]:
    """Return those whose role lets them decode; all when none's does."""
    states = list(states)
    return [s for s in states if s.role is not Role.PREFILL] or states


def decode_options(states: Sequence[StateT], prefill: StateT) -> list[StateT]:
    """Return where a prompt of ``prefill`` may decode, itself first.

    One that does both keeps its requests or gives them to replicas that only decode, never
    to another that does both: moving KV between equals gains nothing.
    """
    candidates = decode_candidates(states)
    if not any(state is prefill for state in candidates):
        return candidates
    return [prefill, *(s for s in candidates if s.role is Role.DECODE and s is not prefill)]


def choose_decode(
    states: Sequence[StateT], demand: Demand, routing: Routing, prefill: StateT
) -> StateT:
    """Return the decode replica for a prompt of ``prefill``; ties go to where it is."""

    def key(state: StateT) -> tuple[float, bool, float]:
        tie = state.step_seconds(state.num_decodes + 1) if routing.ties_by_speed else 0.0
        return routing.decode(state, demand), state is not prefill, tie

    return min(decode_options(states, prefill), key=key)


def choose_prefill(states: Sequence[StateT], demand: Demand, routing: Routing) -> StateT:
    """Return the prefill replica; the best decode replica for its prompt counts with it."""
    values = {state.id: routing.decode(state, demand) for state in decode_candidates(states)}

    def key(state: StateT) -> tuple[float, float]:
        after = min(values[option.id] for option in decode_options(states, state))
        tie = state.prompt_seconds(demand.prompt_tokens) if routing.ties_by_speed else 0.0
        return routing.prefill(state, demand) + after, tie

    candidates = prefill_candidates(states)
    return candidates[0] if len(candidates) == 1 else min(candidates, key=key)


def choose_pair(
    states: Sequence[StateT], demand: Demand, routing: Routing
) -> tuple[StateT, StateT]:
    """Return the prefill and the decode replica at arrival."""
    if routing.mixed_pool is not None:
        return _choose_from_pools(states, demand, routing.mixed_pool)
    prefill = choose_prefill(states, demand, routing)
    return prefill, choose_decode(states, demand, routing, prefill)


def _choose_from_pools(
    states: Sequence[StateT], demand: Demand, pools: MixedPool
) -> tuple[StateT, StateT]:
    """Splitwise: own pool within its limits, then the mixed pool, then the other pool.

    Whoever lends becomes mixed (the caller keeps ``pool``) until it has no work left.
    """

    def least(pool: Iterable[StateT], rule: Rule) -> StateT | None:
        return min(pool, key=lambda s: rule(s, demand), default=None)

    def of(pool: Role, without: StateT | None = None) -> list[StateT]:
        return [s for s in states if s.pool is pool and s is not without]

    def takes_prompt(state: StateT | None) -> bool:
        if state is None:
            return False
        pending = pending_tokens(state, demand)
        return pending == 0 or pending + demand.prompt_tokens <= pools.max_pending_tokens

    def takes_answer(state: StateT | None) -> bool:
        if state is None:
            return False
        return state.reserved_tokens + demand.reserved_tokens < state.kv_tokens

    prefill = least(of(Role.PREFILL), pending_tokens)
    if not takes_prompt(prefill):
        prefill = least(of(Role.BOTH), pending_tokens)
    if not takes_prompt(prefill):
        prefill = least(of(Role.DECODE), pending_tokens)
    lender = prefill if prefill is not None and prefill.pool is Role.DECODE else None
    mixed = of(Role.BOTH) + ([lender] if lender is not None else [])

    decode = least(of(Role.DECODE, without=lender), reserved_memory)
    if not takes_answer(decode):
        decode = least(mixed, reserved_memory)
    if not takes_answer(decode):
        decode = least(of(Role.PREFILL), reserved_memory)
    if prefill is None or decode is None:
        busiest_last = least(states, pending_tokens)
        assert busiest_last is not None, "choices are made among live replicas"
        return busiest_last, busiest_last
    return prefill, decode


class Pooled(Protocol):
    """What changes when a replica lends itself to the other pool."""

    pool: Role
    role: Role


def lend(prefill: Pooled, decode: Pooled) -> None:
    """Relabel the replicas of a choice: whoever does the other pool's work is mixed."""
    if prefill is decode or prefill.pool is Role.DECODE:
        prefill.pool = Role.BOTH
    if decode.pool is Role.PREFILL:
        decode.pool = Role.BOTH


class Memory(Protocol):
    """KV memory and who shares it."""

    @property
    def kv_tokens(self) -> float: ...
    @property
    def held_tokens(self) -> float: ...
    @property
    def num_decodes(self) -> int: ...


def has_room(state: Memory, num_tokens: int, *, is_growing: bool = False) -> bool:
    """Whether KV positions are free; an empty replica takes whatever it is made for.

    Requests that grow leave one block free for each that decodes, as our masters do.
    """
    if state.held_tokens == 0:
        return num_tokens <= state.kv_tokens
    spare = KV_BLOCK_TOKENS * state.num_decodes if is_growing else 0
    return state.held_tokens + num_tokens + spare <= state.kv_tokens


def bind_late(
    states: Sequence[StateT],
    demand: Demand,
    transfer_seconds: Callable[[StateT, StateT], float],
    *,
    just_in_time: bool = False,
) -> tuple[StateT, StateT] | None:
    """Return the pair that can grant now with the least expected finish; None: wait.

    A slot is granted when it is free, or ``just_in_time`` when it is expected to be once the
    prompt's KV is there. Ties go to the pair that moves no KV, then to the earlier in the
    plan.
    """
    decodes = [
        s
        for s in decode_candidates(states)
        if (just_in_time or s.num_decodes < s.slots)
        and has_room(s, demand.reserved_tokens, is_growing=demand.is_growing)
    ]
    prefills = [s for s in prefill_candidates(states) if s.num_prompts < s.prefill_slots]
    if not decodes or not prefills:
        return None
    prompt = {
        s.id: estimated_prefill_wait(s, demand) + s.prompt_seconds(demand.prompt_tokens)
        for s in prefills
    }
    best: tuple[StateT, StateT] | None = None
    best_key = (math.inf, True)
    for decode in decodes:
        is_free = decode.num_decodes < decode.slots
        slot_wait = 0.0 if is_free else estimated_decode_wait(decode, demand)
        answer_seconds = demand.expected_tokens * decode.step_seconds(decode.num_decodes + 1)
        for prefill in prefills:
            ready = prompt[prefill.id] + transfer_seconds(prefill, decode)
            if slot_wait > ready or not _has_prompt_room(prefill, decode, demand):
                continue
            key = (ready + answer_seconds, prefill is not decode)
            if key < best_key:
                best, best_key = (prefill, decode), key
    return best


def _has_prompt_room(prefill: Memory, decode: Memory, demand: Demand) -> bool:
    """Whether the prompt fits; where it decodes too, its reservation holds it."""
    return prefill is decode or has_room(
        prefill, demand.prompt_tokens, is_growing=demand.is_growing
    )

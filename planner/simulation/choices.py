"""Which replicas a request is sent to when it arrives: pure functions from states to a pair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from broker.plan import Role
from planner.simulation.routing import MixedPool, Routing
from planner.simulation.rules import Rule, pending_tokens, reserved_memory
from planner.simulation.states import Demand, StateT, decode_candidates, prefill_candidates


def decode_options(states: Sequence[StateT], prefill: StateT) -> list[StateT]:
    """Return where a prompt of ``prefill`` may decode, itself first.

    One that does both keeps its requests or gives them to replicas that only decode, never
    to another that does both: moving KV between equals gains nothing. Where one does the
    work of a role that is missing, it does both, as our gateways would have it.
    """
    candidates = decode_candidates(states)
    if not any(state is prefill for state in candidates):
        return candidates
    if prefill.role is not Role.BOTH:
        return [prefill]
    return [prefill, *(s for s in candidates if s.role is Role.DECODE)]


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
    candidates = prefill_candidates(states)
    if len(candidates) == 1:
        return candidates[0]
    values = {state.id: routing.decode(state, demand) for state in decode_candidates(states)}

    def key(state: StateT) -> tuple[float, float]:
        after = min(values[option.id] for option in decode_options(states, state))
        tie = state.prompt_seconds(demand.prompt_tokens) if routing.ties_by_speed else 0.0
        return routing.prefill(state, demand) + after, tie

    return min(candidates, key=key)


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
        if state is None or (pools.counts_slots and state.num_decodes >= state.slots):
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

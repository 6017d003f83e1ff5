"""Late binding: which replicas the first of one queue gets, if any can grant now. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from broker.plan import Role
from planner.simulation.routing import Bind, Routing
from planner.simulation.rules import estimated_decode_wait, estimated_prefill_wait
from planner.simulation.states import (
    Demand,
    ReplicaState,
    StateT,
    decode_candidates,
    has_room,
    prefill_candidates,
)


def bind_late(
    states: Sequence[StateT],
    demand: Demand,
    routing: Routing,
    transfer_seconds: Callable[[StateT, StateT], float],
) -> tuple[StateT, StateT] | None:
    """Return the pair that can grant now with the least expected finish; None: wait.

    A slot is granted when it is free, or just in time, when it is expected to be once the
    prompt's KV is there. Ties go to the pair that moves no KV, then to the earlier in the
    plan.
    """
    ahead = routing.bind is Bind.JUST_IN_TIME
    decodes = [
        s
        for s in decode_candidates(states)
        if (ahead or s.num_decodes < s.slots)
        and has_room(s, demand.reserved_tokens, is_growing=demand.is_growing)
    ]
    prefills = [s for s in prefill_candidates(states) if s.num_prompts < s.prefill_slots]
    if not decodes or not prefills:
        return None
    prompts = [(s, *_prompt_costs(s, demand, routing)) for s in prefills]
    best: tuple[StateT, StateT] | None = None
    best_key = (math.inf, True)
    for decode in decodes:
        is_free = decode.num_decodes < decode.slots
        slot_wait = 0.0 if is_free else estimated_decode_wait(decode, demand)
        answer_seconds = _answer_seconds(decode, demand, routing)
        for prefill, prompt_seconds, lost_seconds in prompts:
            # A transfer is asked for last: it takes longest to estimate, and is never negative.
            if prompt_seconds + answer_seconds + lost_seconds > best_key[0]:
                continue
            ready = prompt_seconds + transfer_seconds(prefill, decode)
            if slot_wait > ready or not _may_pair(prefill, decode, demand):
                continue
            key = (ready + answer_seconds + lost_seconds, prefill is not decode)
            if key < best_key:
                best, best_key = (prefill, decode), key
    return best


def _prompt_costs(state: ReplicaState, demand: Demand, routing: Routing) -> tuple[float, float]:
    """Return seconds until a prompt is through, and what the streams beside it lose."""
    seconds = state.prompt_seconds(demand.prompt_tokens)
    lost = seconds * state.num_active if routing.counts_others else 0.0
    return estimated_prefill_wait(state, demand) + seconds, lost


def _answer_seconds(state: ReplicaState, demand: Demand, routing: Routing) -> float:
    """Return the time of an answer, and what those beside it lose by a larger batch."""
    step = state.step_seconds(state.num_decodes + 1)
    seconds = demand.expected_tokens * step
    if routing.counts_others and state.num_decodes:
        # The others are half-way on average.
        slower = step - state.step_seconds(state.num_decodes)
        seconds += slower * state.num_decodes * demand.expected_tokens / 2
    return seconds


def _may_pair(prefill: ReplicaState, decode: ReplicaState, demand: Demand) -> bool:
    """Whether roles allow a pair, and the prompt fits.

    Where one does both, its reservation holds the prompt too. One that stands in for a role
    that is missing does both.
    """
    if prefill is decode:
        return True
    if prefill.role is Role.DECODE or decode.role is Role.PREFILL:
        return False
    return has_room(prefill, demand.prompt_tokens, is_growing=demand.is_growing)

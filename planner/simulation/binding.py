"""Late binding: which replicas the first of one queue gets, if it should begin now. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from broker.placement import WAITING_ROWS
from broker.plan import Role
from broker.room import sends_ahead, taken_ahead
from planner.simulation.routing import Routing
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

    Waiting is right when no pair can grant, and when one that cannot yet will finish so much
    earlier that it is worth it. Ties go to the pair that moves no KV, then to the earlier in
    the plan.
    """
    prefills, decodes = prefill_candidates(states), decode_candidates(states)
    if not any(_has_prefill_slot(state) for state in prefills):
        return None
    best: tuple[StateT, StateT] | None = None
    best_key, awaited_seconds = (math.inf, True), math.inf
    prompts = [(s, *_prompt_costs(s, demand, routing)) for s in prefills]
    for decode in decodes:
        if not has_room(decode, demand.reserved_tokens, is_growing=demand.is_growing):
            continue
        slot_wait = estimated_decode_wait(decode, demand)
        answer_seconds = _answer_seconds(decode, demand, routing)
        for prefill, prompt_seconds, lost_seconds in prompts:
            # Who takes longer than the best is neither better nor worth waiting for. A transfer
            # is asked for last: it takes longest to estimate, and is never negative.
            least = max(prompt_seconds, slot_wait) + answer_seconds + lost_seconds
            if least > best_key[0] or not _may_pair(prefill, decode, demand):
                continue
            ready = prompt_seconds + transfer_seconds(prefill, decode)
            grants = _grants_slot(prefill, decode, demand)
            # Where it does both, a prompt waits for a slot; else it is prefilled meanwhile.
            is_ahead = grants or prefill is not decode
            begin = max(ready, slot_wait) if is_ahead else ready + slot_wait
            key = begin + answer_seconds + lost_seconds, prefill is not decode
            if not (grants and _has_prefill_slot(prefill)):
                awaited_seconds = min(awaited_seconds, key[0])
            elif key < best_key:
                best, best_key = (prefill, decode), key
    return best if best_key[0] <= routing.worth_waiting * awaited_seconds else None


def _has_prefill_slot(state: ReplicaState) -> bool:
    return state.num_prompts < state.prefill_slots


def _grants_slot(prefill: ReplicaState, decode: ReplicaState, demand: Demand) -> bool:
    """Whether the decode replica's master lets one more request come, as ours do.

    What is prefilled elsewhere may come ahead of a free slot: few may wait for a row, and none
    of them may cost another its memory (`broker.room`).
    """
    if decode.num_decodes < decode.slots:
        return True
    if prefill is decode or not sends_ahead(prefill.role, decode.role):
        return False
    taken = taken_ahead(decode.role, decode.num_decodes, decode.num_complete)
    if taken >= decode.slots + WAITING_ROWS:
        return False
    return not demand.is_growing or decode.whole_tokens + demand.whole_tokens <= decode.kv_tokens


def _prompt_costs(state: ReplicaState, demand: Demand, routing: Routing) -> tuple[float, float]:
    """Return seconds until a prompt is through, and what the streams beside it lose."""
    seconds = state.prompt_seconds(demand.prompt_tokens)
    lost = seconds * min(state.num_complete, state.slots) if routing.counts_others else 0.0
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

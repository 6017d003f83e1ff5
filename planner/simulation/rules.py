"""Rules by which replicas are compared: a number each, smaller being better. Pure functions.

Rules see what a router can see: queues and planned speeds, never the true speeds nor
(Splitwise's reservation apart) an answer's length.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from planner.simulation.states import Demand, ReplicaState

Rule = Callable[[ReplicaState, Demand], float]


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

"""Rules by which replicas are compared: a number each, smaller being better. Pure functions.

Rules see what a router can see: queues and planned speeds, never the true speeds nor
(Splitwise's reservation apart) an answer's length.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.queueing import slot_wait_tokens
from planner.simulation.states import Demand, ReplicaState

Rule = Callable[[ReplicaState, Demand], float]


def estimated_prefill_wait(state: ReplicaState, demand: Demand) -> float:
    """Return seconds until a new prompt begins: pending positions over the planned rate."""
    return state.pending_prompt_tokens / state.prefill_tokens_per_second


def estimated_decode_wait(state: ReplicaState, demand: Demand) -> float:
    """Return seconds until a decode slot is free, every answer having the expected length."""
    if state.num_decodes < state.slots:
        return 0.0
    slots = int(state.slots)
    generated = state.generated_tokens()
    steps = slot_wait_tokens(slots, state.num_decodes, generated, demand.expected_tokens)
    return steps * state.step_seconds(slots)


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

"""What a router knows of a request and of a replica, and who may do what. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

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
        whole_tokens: All that it will need, as its ``max_tokens`` says in a real fog.
    """

    prompt_tokens: int
    expected_tokens: float
    reserved_tokens: int
    is_growing: bool = False
    whole_tokens: int = 0


class ReplicaState(Protocol):
    """What a router knows of a live replica.

    Attributes:
        pool: Role that it plays now; differs from ``role`` only with a mixed pool.
        slots: Requests decoded at once; infinite where only memory limits.
        prefill_slots: Prompts that late binding grants at once.
        kv_tokens: KV positions that it has.
        held_tokens: KV positions in use or granted.
        reserved_tokens: KV positions that all its decoding requests will need.
        whole_tokens: The same, and those that other requests' prompts hold.
        num_prompts: Prompts bound to it and not handed over yet.
        pending_prompt_tokens: Of these, positions not through prefill.
        num_decodes: Requests bound to decode here, or decoding.
        num_complete: Of these, decoding or waiting for a row with all that they need.
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
    def whole_tokens(self) -> int: ...
    @property
    def num_prompts(self) -> int: ...
    @property
    def pending_prompt_tokens(self) -> int: ...
    @property
    def num_decodes(self) -> int: ...
    @property
    def num_complete(self) -> int: ...
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


def prefill_candidates(states: Iterable[StateT]) -> list[StateT]:
    """Return those whose role lets them prefill; all when none's does."""
    states = list(states)
    return [s for s in states if s.role is not Role.DECODE] or states


def decode_candidates(states: Iterable[StateT]) -> list[StateT]:
    """Return those whose role lets them decode; all when none's does."""
    states = list(states)
    return [s for s in states if s.role is not Role.PREFILL] or states


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

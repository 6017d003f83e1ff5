"""What a request needs of a replica, and whether it is there: the count of the masters. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.placement import KV_BLOCK_TOKENS, WAITING_ROWS, room_tokens, whole_tokens
from broker.plan import Replica
from broker.work import ReserveKind


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
class Usage:
    """Room that requests hold in a replica.

    Attributes:
        prefills: Prompts in work or waiting for hand-over.
        decodes: Requests that decode, or will.
        tokens: Reserved KV positions.
        complete: Of ``decodes``, those that are through prefill: they decode or wait for a row.
        whole_tokens: KV positions that all of them may grow to.
    """

    prefills: int = 0
    decodes: int = 0
    tokens: int = 0
    complete: int = 0
    whole_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prefills + other.prefills,
            self.decodes + other.decodes,
            self.tokens + other.tokens,
            self.complete + other.complete,
            self.whole_tokens + other.whole_tokens,
        )


NOTHING: Final = Usage()


def slots_of(replica: Replica) -> int:
    """Return how many requests a replica decodes at once."""
    return max(replica.slots, 1)


def has_room(replica: Replica, usage: Usage, kind: ReserveKind, demand: Demand) -> bool:
    """Whether a replica has KV room for one more request of ``kind``, whatever its slots.

    The same count as the masters': whole blocks, and one block to grow for each answer.
    """
    room = room_tokens(kind, demand.known_tokens)
    if usage == NOTHING:
        return room <= replica.kv_tokens
    if kind is ReserveKind.DECODE and usage.decodes >= slots_of(replica):
        whole = whole_tokens(kind, demand.known_tokens, demand.max_tokens)
        return usage.whole_tokens + whole <= replica.kv_tokens
    return usage.tokens + room + KV_BLOCK_TOKENS * usage.decodes <= replica.kv_tokens


def has_slot(replica: Replica, usage: Usage, kind: ReserveKind) -> bool:
    """Whether a replica grants one more request of ``kind``, whatever its KV room.

    The same count as the masters': an answer whose prompt is prefilled elsewhere may come
    ahead of a free slot while few wait for a row, and then needs room for its full length.
    """
    has_prefill_slot = usage.prefills < max(replica.prefill_slots, 1)
    if kind is ReserveKind.PREFILL:
        return has_prefill_slot
    if kind is ReserveKind.BOTH:
        return usage.decodes < slots_of(replica) and has_prefill_slot
    return usage.complete < slots_of(replica) + WAITING_ROWS

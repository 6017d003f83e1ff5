"""Whether a replica has room for one more request. Pure.

Masters decide by it, and gateways by it too, from what they believe of each replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.placement import KV_BLOCK_TOKENS, WAITING_ROWS, room_tokens, whole_tokens
from broker.plan import Replica, Role
from broker.work import ReserveKind


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


def prefill_slots_of(replica: Replica) -> int:
    """Return how many prompts a replica takes at once."""
    return max(replica.prefill_slots, 1)


def free_slots(replica: Replica, usage: Usage, kind: ReserveKind) -> int:
    """Return how many more requests of ``kind`` its slots allow; not positive: none.

    An answer whose prompt is prefilled elsewhere may come ahead of a free slot while few wait
    for a row, and then needs room for its full length. Where a replica prefills as well, those
    on their way count as waiting: else it would have no slot for prompts of its own.
    """
    if kind is ReserveKind.PREFILL:
        return prefill_slots_of(replica) - usage.prefills
    if kind is ReserveKind.BOTH:
        return slots_of(replica) - usage.decodes
    taken = taken_ahead(replica.role, usage.decodes, usage.complete)
    return slots_of(replica) + WAITING_ROWS - taken


def taken_ahead(role: Role, decodes: int, complete: int) -> int:
    """Return which of a replica's requests limit those that come ahead of a slot."""
    return decodes if role is Role.BOTH else complete


def has_slot(replica: Replica, usage: Usage, kind: ReserveKind) -> bool:
    """Whether a replica grants one more request of ``kind``, whatever its KV room."""
    kinds = (kind, ReserveKind.PREFILL) if kind is ReserveKind.BOTH else (kind,)
    return all(free_slots(replica, usage, each) > 0 for each in kinds)


def sends_ahead(prefill: Role, decode: Role) -> bool:
    """Whether prompts of one replica may go to another ahead of a free slot there.

    Not between two that do both: each has prompts of its own for the next slot.
    """
    return not (prefill is Role.BOTH and decode is Role.BOTH)


def has_room(
    replica: Replica, usage: Usage, kind: ReserveKind, known_tokens: int, max_tokens: int
) -> bool:
    """Whether a replica has KV room for one more request of ``kind``, whatever its slots.

    Whole blocks, and one block to grow for each answer, so that a newcomer does not cause a
    preemption at once.
    """
    room = room_tokens(kind, known_tokens)
    if usage == NOTHING:
        return room <= replica.kv_tokens
    if kind is ReserveKind.DECODE and usage.decodes >= slots_of(replica):
        # Who comes ahead of a slot takes only room that no answer here can grow into.
        whole = whole_tokens(kind, known_tokens, max_tokens)
        return usage.whole_tokens + whole <= replica.kv_tokens
    return usage.tokens + room + KV_BLOCK_TOKENS * usage.decodes <= replica.kv_tokens

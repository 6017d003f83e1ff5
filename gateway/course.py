"""What a request did when: queue, prefill, KV transfer, decode. Pure; times, never texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from gateway.lifecycle import Phase

MOST_TURNS: Final = 64
"""Of one request; one that went back to the queue over and over forgets its first ones."""
MOST_ENDED: Final = 50
"""Ended requests of which the course is still known."""

_NAMES: Final = {
    Phase.QUEUED: "queue",
    Phase.RESERVING: "queue",
    Phase.PREFILL: "prefill",
    Phase.HANDOVER: "kv_transfer",
    Phase.DECODE: "decode",
}
"""As people see phases; those in which a request has ended have none."""


class Turn(NamedTuple):
    """A request entered a phase at a time, in seconds on the gateway's clock."""

    phase: Phase
    at: float


class Stretch(NamedTuple):
    """A part of a request's course.

    Attributes:
        phase: ``queue``, ``prefill``, ``kv_transfer`` or ``decode``.
        begins: Seconds since the request came.
        seconds: How long it took, or takes already.
    """

    phase: str
    begins: float
    seconds: float

    def body(self) -> dict[str, Any]:
        """Return what ``GET /fog/requests`` says of it."""
        return {
            "phase": self.phase,
            "begins_seconds": round(self.begins, 4),
            "seconds": round(self.seconds, 4),
        }


def stretches(turns: Iterable[Turn], submitted_at: float, now: float) -> tuple[Stretch, ...]:
    """Return the course of a request.

    Args:
        turns: In the order of time; the last one may be its end.
        submitted_at: When it came.
        now: Up to when the last stretch goes, where it has not ended.

    A stretch that took no time is left out: where one replica does both, no KV moves.
    """
    found: list[Stretch] = []
    turns = tuple(turns)
    ends = [*(turn.at for turn in turns[1:]), now]
    for turn, end in zip(turns, ends, strict=True):
        name = _NAMES.get(turn.phase)
        if name is None or end <= turn.at:
            continue
        if found and found[-1].phase == name:
            before = found.pop()
            found.append(before._replace(seconds=end - submitted_at - before.begins))
        else:
            found.append(Stretch(name, turn.at - submitted_at, end - turn.at))
    return tuple(found)

"""A request's life as a table. The dispatcher changes a phase only through `advance`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final


class Phase(Enum):
    """Where a request is. It decides whose tokens count and whose loss matters."""

    QUEUED = auto()
    """Bound to nothing; waits for its turn."""
    RESERVING = auto()
    """Masters were asked for room; not all have granted it."""
    PREFILL = auto()
    """Opened at every stage; no token of this attempt yet."""
    HANDOVER = auto()
    """The last prefill stage sampled a token; KV is perhaps still on its way."""
    DECODE = auto()
    """The decode replica has everything; the prefill replica does not matter any more.

    The request may wait there for a row.
    """
    FINISHED = auto()
    FAILED = auto()
    CANCELLED = auto()


class Event(Enum):
    """What can happen to a request."""

    BOUND = auto()
    """A pair of replicas was chosen and their masters asked."""
    GRANTED = auto()
    """All room that was asked for is granted; `Open` goes out."""
    TOKEN = auto()
    """The next token arrived, and more will follow."""
    COMPLETE = auto()
    """The decode replica says that it has everything."""
    STOPPED = auto()
    """The last token arrived."""
    ATTEMPT_LOST = auto()
    """The attempt ended without the request: a stage was lost, room ran out, no grant came."""
    FAILED = auto()
    """The request cannot be answered."""
    CANCELLED = auto()
    """The client wants no more tokens."""


class IllegalTransitionError(Exception):
    """A bug of the caller: the event cannot happen in this phase. Not meant to be caught."""


_ENDINGS: Final = {Event.FAILED: Phase.FAILED, Event.CANCELLED: Phase.CANCELLED}

TRANSITIONS: Final[Mapping[Phase, Mapping[Event, Phase]]] = {
    Phase.QUEUED: {Event.BOUND: Phase.RESERVING, **_ENDINGS},
    Phase.RESERVING: {
        Event.GRANTED: Phase.PREFILL,
        Event.ATTEMPT_LOST: Phase.QUEUED,
        **_ENDINGS,
    },
    Phase.PREFILL: {
        # TTFT is measured on this transition.
        Event.TOKEN: Phase.HANDOVER,
        # The answer may be one token long.
        Event.STOPPED: Phase.FINISHED,
        # Back to the queue, not to RESERVING: whoever takes over may have no room now.
        Event.ATTEMPT_LOST: Phase.QUEUED,
        **_ENDINGS,
    },
    Phase.HANDOVER: {
        # A second token can only come from decode, so all KV has arrived there.
        Event.TOKEN: Phase.DECODE,
        Event.COMPLETE: Phase.DECODE,
        Event.STOPPED: Phase.FINISHED,
        Event.ATTEMPT_LOST: Phase.QUEUED,
        **_ENDINGS,
    },
    Phase.DECODE: {
        Event.TOKEN: Phase.DECODE,
        # Said again and again while the request waits for a row.
        Event.COMPLETE: Phase.DECODE,
        Event.STOPPED: Phase.FINISHED,
        Event.ATTEMPT_LOST: Phase.QUEUED,
        **_ENDINGS,
    },
    Phase.FINISHED: {},
    Phase.FAILED: {},
    Phase.CANCELLED: {},
}

RUNNING: Final = frozenset({Phase.PREFILL, Phase.HANDOVER, Phase.DECODE})
"""Phases in which stages hold the request, so tokens may come."""

ENDED: Final = frozenset(phase for phase, events in TRANSITIONS.items() if not events)
"""Phases without a way out."""


def advance(phase: Phase, event: Event) -> Phase:
    """Return the phase after ``event``; `IllegalTransitionError` if there is none."""
    try:
        return TRANSITIONS[phase][event]
    except KeyError:
        raise IllegalTransitionError(f"{event.name} in {phase.name}") from None

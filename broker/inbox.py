"""How both transports read their inbox."""

from __future__ import annotations

import queue

from broker.transport import Inbox, TransportEvent


def take(inbox: Inbox, timeout_seconds: float | None) -> TransportEvent | None:
    """Return the next event, or None after the time; a time that is over counts as 0."""
    try:
        if timeout_seconds is None:
            return inbox.get()
        return inbox.get(timeout=max(timeout_seconds, 0.0))
    except queue.Empty:
        return None

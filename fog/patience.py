"""How long a wait may take: a time without progress, or a time in one hopeless state. Pure."""

from __future__ import annotations


class Patience:
    """Runs out when nothing has advanced for ``timeout_seconds``.

    A large model from the hub may take an hour and is fine while bytes arrive; a fog that
    waits for a device that never comes is given up after the timeout.
    """

    def __init__(self, timeout_seconds: float, now: float) -> None:
        self._timeout = timeout_seconds
        self._best = float("-inf")
        self._advanced_at = now

    def is_out(self, advance: float, now: float) -> bool:
        """Take in how far things are, a number that grows, and return whether to give up."""
        # Only beyond the best: a child that crashes and comes back is no progress.
        if advance > self._best:
            self._best, self._advanced_at = advance, now
        return now - self._advanced_at > self._timeout


class Standstill:
    """Tells when one state has lasted for ``seconds``.

    Args:
        seconds: Long enough that what is under way shows itself by another state.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._state: object = None
        self._since = 0.0

    def has_lasted(self, state: object, now: float) -> bool:
        """Take in the state, None for none, and return whether it has lasted long enough."""
        if state is None or state != self._state:
            self._state, self._since = state, now
            return False
        return now - self._since >= self._seconds

"""How long a client waits before it connects again. Pure: the caller sleeps."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass
class Backoff:
    """Delays that double from the first to the last, with jitter.

    Attributes:
        first_seconds: Delay after a connection that worked.
        last_seconds: The delay never grows beyond.
        stable_seconds: A connection that lived shorter did not work: two clients with one id
            take each other's place for ever, and must do it ever more slowly.
        rng: Source of the jitter. Needed because all clients of a restarted broker lose it
            at the same moment and would come back at the same moment.
    """

    first_seconds: float = 0.2
    last_seconds: float = 5.0
    stable_seconds: float = 10.0
    rng: random.Random = field(default_factory=random.Random)
    _num_failures: int = 0

    def next_delay(self, lived_seconds: float = 0.0) -> float:
        """Return the delay after a connection that lived so long (0: it never worked)."""
        if lived_seconds >= self.stable_seconds:
            self._num_failures = 0
        # Capped before it is doubled, so that no number of failures overflows.
        delay = min(self.first_seconds * 2.0 ** min(self._num_failures, 16), self.last_seconds)
        self._num_failures += 1
        return delay * self.rng.uniform(0.5, 1.0)

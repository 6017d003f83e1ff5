"""Whom to ask for a tensor's bytes, one range at a time: who is nearest, fast, awake and free.

Nearer ones go first unless a farther one was measured to be much faster. Who breaks off, refuses
or gives damaged bytes is not asked again for a while, unless nobody else is left. Reads no bytes
itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import inf
from typing import Final

_FIRST_REST_SECONDS: Final = 30.0
_LONGEST_REST_SECONDS: Final = 600.0
_LOOK_SECONDS: Final = 0.1
# Less is mostly latency and says little of the rate,
_MEASURED_BYTES: Final = 1 << 18
# and a range that is neither large nor long may only have waited for a processor.
_LARGE_BYTES: Final = 4 << 20
_LONG_SECONDS: Final = 0.5
# So much faster must a farther source be; among those of a kind a slower one is left.
_MUCH: Final = 2.0
# What an old LAN gives. Below it, it is worth a range to see whether a farther one is faster.
_SLOW_BYTES_PER_SECOND: Final = 10e6
# Links and what else runs there change: after that, a rate is measured again.
_RATE_SECONDS: Final = 60.0


class Kind(IntEnum):
    """What a source is, the nearest first."""

    NEIGHBOUR = 0
    GATEWAY = 1
    HUB = 2


@dataclass(frozen=True, slots=True)
class Manner:
    """How sources of a kind are asked.

    Attributes:
        places: Ranges read from one source at a time. One from a neighbour, so that one that
            is bad costs no more than a range, and one that computes is not crowded.
        attempts: Tries without a new byte after which it is left.
        timeout_seconds: Silence after which a connection counts as broken.
    """

    places: int
    attempts: int
    timeout_seconds: float


MANNERS: Final = {
    # Others have the same: no use in waiting for this one.
    Kind.NEIGHBOUR: Manner(places=1, attempts=1, timeout_seconds=5.0),
    Kind.GATEWAY: Manner(places=4, attempts=4, timeout_seconds=20.0),
    Kind.HUB: Manner(places=4, attempts=4, timeout_seconds=20.0),
}


@dataclass(frozen=True, slots=True)
class Source:
    """A place that has one tensor.

    Attributes:
        name: As it stands in messages; equal names are one source.
        first_byte: Where the tensor begins under ``url``.
        token: For the URL itself.
    """

    name: str
    kind: Kind
    url: str
    first_byte: int = 0
    token: str | None = None


class SourceBook:
    """What is known of the sources of one node, by name; shared by the threads that read.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._busy: dict[str, int] = {}
        self._troubles: dict[str, int] = {}
        self._rests_until: dict[str, float] = {}
        # When it was measured, and bytes per second.
        self._rates: dict[str, tuple[float, float]] = {}

    def lease(
        self, sources: Sequence[Source], check: Callable[[], None] | None = None
    ) -> Source | None:
        """Return whom to ask now, to be given back with `release`; None without sources.

        Waits until one of the best has a place.

        Args:
            sources: Of one tensor; among equals the first is taken.
            check: Called while waiting; what it raises ends that.
        """
        with self._changed:
            while sources:
                source = self._best(sources)
                if source is not None:
                    self._busy[source.name] = self._busy.get(source.name, 0) + 1
                    return source
                if check is not None:
                    check()
                self._changed.wait(_LOOK_SECONDS)
        return None

    def release(self, source: Source) -> None:
        """Nothing is read from it any more."""
        with self._changed:
            self._busy[source.name] -= 1
            self._changed.notify_all()

    def trust(self, source: Source) -> None:
        """It gave what it should."""
        with self._changed:
            self._troubles.pop(source.name, None)
            self._rests_until.pop(source.name, None)

    def measure(self, source: Source, num_bytes: int, seconds: float) -> None:
        """A range came in that time, while the source was leased."""
        is_telling = num_bytes >= _LARGE_BYTES or seconds >= _LONG_SECONDS
        if num_bytes >= _MEASURED_BYTES and seconds > 0 and is_telling:
            with self._changed:
                # Ranges that are read at once share what the link gives.
                rate = num_bytes / seconds * max(self._busy.get(source.name, 0), 1)
                self._rates[source.name] = self._clock(), rate

    def distrust(self, source: Source) -> None:
        """It failed: it rests, each time twice as long."""
        with self._changed:
            # Several ranges may break off at once: that is one failure.
            if self._is_resting(source):
                return
            troubles = self._troubles.get(source.name, 0)
            self._troubles[source.name] = troubles + 1
            rest = min(_FIRST_REST_SECONDS * 2.0**troubles, _LONGEST_REST_SECONDS)
            self._rests_until[source.name] = self._clock() + rest
            self._changed.notify_all()

    def _best(self, sources: Sequence[Source]) -> Source | None:
        awake = [source for source in sources if not self._is_resting(source)] or sources
        candidates = self._fast_enough(awake)
        kind = min(source.kind for source in candidates)
        places = MANNERS[kind].places
        return next(
            (s for s in candidates if s.kind is kind and self._busy.get(s.name, 0) < places), None
        )

    def _fast_enough(self, sources: Sequence[Source]) -> Sequence[Source]:
        """Return all but those that others are known, or worth a try, to be faster than."""
        rates = {source.name: self._rate(source) for source in sources}
        known = [rate for rate in rates.values() if rate is not None]
        fastest = max(known, default=0.0)
        least = fastest / _MUCH
        if len(known) < len(rates):
            least = max(least, _SLOW_BYTES_PER_SECOND)
        return [s for s in sources if (rate := rates[s.name]) is None or rate >= least]

    def _rate(self, source: Source) -> float | None:
        measured_at, rate = self._rates.get(source.name, (-inf, 0.0))
        return rate if self._clock() - measured_at < _RATE_SECONDS else None

    def _is_resting(self, source: Source) -> bool:
        return self._clock() < self._rests_until.get(source.name, 0.0)

"""Measures the link to the broker by messages to oneself. Pure: time and echoes come in.

`LinkProbe` does it once, before anything else; `LinkWatch` goes on while the device serves.

Twice the way to the broker is one round trip; what a large message takes longer than a small
one is its bytes, once up and once down. The fastest of a few counts: a slower one says how
busy the host was.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from broker.control import USUAL_LINK_BYTES_PER_SECOND, Link

SMALL_BYTES: Final = 64
LARGE_BYTES: Final = 64 * 1024
_NUM_SMALL: Final = 6
_NUM_LARGE: Final = 4
_PATIENCE_SECONDS: Final = 1.0
_MAX_LOST: Final = 2
_WATCH_SMALL_SECONDS: Final = 2.0
_WATCH_LARGE_SECONDS: Final = 4.0
# Tells these messages from those of the start.
_WATCH_MARK: Final = 1 << 31
_FASTEST: Final = 1.25e9
"""Bytes per second of the fastest link that these messages could tell from no link at all."""

FALLBACK: Final = Link(latency_seconds=1e-3, bytes_per_second=USUAL_LINK_BYTES_PER_SECOND)
"""When no message comes back."""


class LinkProbe:
    """A series of messages to oneself; the next leaves when the last came back or is lost."""

    def __init__(self) -> None:
        self._number = 0
        self._num_lost = 0
        self._sent_at: float | None = None
        self._small: list[float] = []
        self._large: list[float] = []

    @property
    def is_done(self) -> bool:
        """Whether all messages came back, or several are lost."""
        return self._number >= _NUM_SMALL + _NUM_LARGE or self._num_lost >= _MAX_LOST

    def next_payload(self, now: float) -> bytes | None:
        """Return a message to send now, or None."""
        if self._sent_at is not None and now - self._sent_at >= _PATIENCE_SECONDS:
            self._number += 1
            self._num_lost += 1
            self._sent_at = None
        if self.is_done or self._sent_at is not None:
            return None
        self._sent_at = now
        size = SMALL_BYTES if self._number < _NUM_SMALL else LARGE_BYTES
        return self._number.to_bytes(4, "big") + bytes(size - 4)

    def take_echo(self, payload: bytes, now: float) -> None:
        """A message came back; late and foreign ones change nothing."""
        if self._sent_at is None or payload[:4] != self._number.to_bytes(4, "big"):
            return
        seconds = now - self._sent_at
        (self._small if len(payload) == SMALL_BYTES else self._large).append(seconds)
        self._number += 1
        self._sent_at = None

    def link(self) -> Link | None:
        """Return what was measured; None when nothing came back."""
        if not self._small:
            return None
        latency = min(self._small) / 2
        extra = min(self._large, default=0.0) - min(self._small)
        rate = 2 * (LARGE_BYTES - SMALL_BYTES) / extra if extra > 0 else _FASTEST
        if not self._large:
            rate = FALLBACK.bytes_per_second
        return Link(latency_seconds=latency, bytes_per_second=min(rate, _FASTEST))


class LinkWatch:
    """The link as it is now: single messages to oneself, while there is nothing to compute.

    An echo counts only when nothing was computed meanwhile, because it would have waited for
    that; of a few the fastest, because a slower one says how busy the host was.

    Args:
        link: As it was measured at the start.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._number = 0
        self._sent: tuple[float, int, int] | None = None
        self._small_at = self._large_at = -_WATCH_LARGE_SECONDS
        self._small: deque[float] = deque(maxlen=4)
        # Bytes per second.
        self._rates: deque[float] = deque(maxlen=3)

    def next_payload(self, now: float, num_jobs: int) -> bytes | None:
        """Return a message to send now, or None.

        ``num_jobs`` is the number of computations so far.
        """
        if self._sent is not None and now - self._sent[0] < _PATIENCE_SECONDS:
            return None
        size = 0
        if now - self._small_at >= _WATCH_SMALL_SECONDS:
            self._small_at, size = now, SMALL_BYTES
        elif self._small and now - self._large_at >= _WATCH_LARGE_SECONDS:
            self._large_at = now
            size = int(min(max(0.005 * self._link.bytes_per_second, 4096), LARGE_BYTES))
        if not size:
            return None
        self._number += 1
        self._sent = now, size, num_jobs
        return (_WATCH_MARK | self._number).to_bytes(4, "big") + bytes(size - 4)

    def take_echo(self, payload: bytes, now: float, num_jobs: int) -> None:
        """A message came back; late, delayed and foreign ones change nothing."""
        mark = (_WATCH_MARK | self._number).to_bytes(4, "big")
        if self._sent is None or payload[:4] != mark:
            return
        (at, size, jobs), self._sent = self._sent, None
        seconds = now - at
        if jobs != num_jobs:
            return
        if size == SMALL_BYTES:
            self._small.append(seconds)
        elif (extra := seconds - min(self._small)) > 0:
            self._rates.append(min(2 * (size - SMALL_BYTES) / extra, _FASTEST))

    def link(self) -> Link:
        """Return the link as far as it was measured lately, else as at the start."""
        return Link(
            latency_seconds=min(self._small) / 2 if self._small else self._link.latency_seconds,
            bytes_per_second=max(self._rates) if self._rates else self._link.bytes_per_second,
        )


def kv_chunk_bytes(link: Link) -> int:
    """Return about 20 ms of the link, 16 to 256 KiB: longer would hold up what comes behind."""
    return int(min(max(0.02 * link.bytes_per_second, 16 << 10), 256 << 10))

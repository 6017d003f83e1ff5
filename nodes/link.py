"""Measures the link to the broker by messages to oneself. Pure: time and echoes come in.

Twice the way to the broker is one round trip; what a large message takes longer than a small
one is its bytes, once up and once down. The fastest of a few counts: a slower one says how
busy the host was.
"""

from __future__ import annotations

from typing import Final

from broker.control import Link

SMALL_BYTES: Final = 64
LARGE_BYTES: Final = 64 * 1024
_NUM_SMALL: Final = 6
_NUM_LARGE: Final = 4
_PATIENCE_SECONDS: Final = 1.0
_MAX_LOST: Final = 2
_FASTEST: Final = 1.25e9
"""Bytes per second of the fastest link that these messages could tell from no link at all."""

FALLBACK: Final = Link(latency_seconds=1e-3, bytes_per_second=12.5e6)
"""When no message comes back: a wired 100 Mbit/s link."""


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


def kv_chunk_bytes(link: Link) -> int:
    """Return about 20 ms of the link, 16 to 256 KiB: longer would hold up what comes behind."""
    return int(min(max(0.02 * link.bytes_per_second, 16 << 10), 256 << 10))

"""Counts of what each key uses: of this gateway alone, or in Redis those of all.

`MemoryCounters` counts here. `gateway.access.shared` has the same in Redis, and falls back on
this while Redis does not answer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from gateway.access.quotas import MINUTE_SECONDS, Usage, Window

OPEN_SECONDS: Final = 180.0
"""How long an open request counts that nobody renews: its gateway may have died. Longer than a
request waits for its first token."""


class Counters(Protocol):
    """What callers use. Only `enter` may take time."""

    async def enter(self, caller: str, request: str) -> Usage:
        """Count a request and say that it is open; return what the caller uses with it."""

    def back_out(self, caller: str, request: str) -> None:
        """Take back what `enter` counted: the request was not let in."""

    def charge(self, caller: str, num_tokens: int) -> None:
        """Count tokens."""

    def renew(self, caller: str, request: str) -> None:
        """Say that a request is still open; at least once in `OPEN_SECONDS`."""

    def leave(self, caller: str, request: str) -> None:
        """Say that a request has ended."""


@dataclass(slots=True)
class _Counts:
    """Of one caller: by calendar minute, and the open requests with the time until they count."""

    requests: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    open: dict[str, float] = field(default_factory=dict)

    def forget(self, minute: int, now: float) -> None:
        for counter in (self.requests, self.tokens):
            for old in [each for each in counter if each < minute - 1]:
                del counter[old]
        for request in [each for each, until in self.open.items() if until <= now]:
            del self.open[request]


class MemoryCounters:
    """The counts of one gateway.

    Args:
        clock: UTC seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._counts: dict[str, _Counts] = {}

    async def enter(self, caller: str, request: str) -> Usage:
        now = self._clock()
        minute = minute_of(now)
        counts = self._counts.setdefault(caller, _Counts())
        counts.forget(minute, now)
        counts.requests[minute] += 1
        counts.open[request] = now + OPEN_SECONDS
        return Usage(
            Window(counts.requests[minute - 1], counts.requests[minute]),
            Window(counts.tokens[minute - 1], counts.tokens[minute]),
            len(counts.open),
            now % MINUTE_SECONDS,
        )

    def back_out(self, caller: str, request: str) -> None:
        counts = self._counts[caller]
        counts.requests[minute_of(self._clock())] -= 1
        counts.open.pop(request, None)

    def charge(self, caller: str, num_tokens: int) -> None:
        counts = self._counts.setdefault(caller, _Counts())
        counts.tokens[minute_of(self._clock())] += num_tokens

    def renew(self, caller: str, request: str) -> None:
        self._counts.setdefault(caller, _Counts()).open[request] = self._clock() + OPEN_SECONDS

    def leave(self, caller: str, request: str) -> None:
        if caller in self._counts:
            self._counts[caller].open.pop(request, None)


class Uncounted:
    """For callers without limits, who cost no look into Redis."""

    async def enter(self, caller: str, request: str) -> Usage:
        return Usage(Window(), Window(), 0, 0.0)

    def back_out(self, caller: str, request: str) -> None:
        pass

    def charge(self, caller: str, num_tokens: int) -> None:
        pass

    def renew(self, caller: str, request: str) -> None:
        pass

    def leave(self, caller: str, request: str) -> None:
        pass


def minute_of(now: float) -> int:
    """Return the number of a calendar minute."""
    return int(now // MINUTE_SECONDS)

"""Attempts that have ended, so that nothing of them stays at a stage. Pure.

A `Release` may be lost like any message. It is sent again once, and whenever an event of
the ended attempt shows that a stage still holds it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from broker.transport import Publication
from broker.work import Release, RequestKey
from gateway.attempt import Address, Postbox

REMEMBER_SECONDS: Final = 60.0
AGAIN_SECONDS: Final = 1.0
MAX_REMEMBERED: Final = 20_000
"""A broken node that makes up request ids must not fill our memory."""


@dataclass(slots=True)
class _Ended:
    targets: tuple[Address, ...]
    reason: str
    ended_at: float
    sent_at: float


class Releases:
    """Remembers ended attempts for a minute and answers what still comes of them."""

    def __init__(self, postbox: Postbox) -> None:
        self._postbox = postbox
        self._ended: dict[RequestKey, _Ended] = {}
        self._again: deque[tuple[float, RequestKey]] = deque()

    def end(
        self, key: RequestKey, targets: Iterable[Address], reason: str, now: float
    ) -> list[Publication]:
        """Release an attempt at ``targets``, now and once more a second later."""
        self._ended[key] = _Ended(tuple(targets), reason, now, now)
        self._again.append((now + AGAIN_SECONDS, key))
        return self._release(key)

    def stray(self, key: RequestKey, sources: Iterable[Address], now: float) -> list[Publication]:
        """Answer an event of an attempt that is over, at most once per second.

        ``sources`` are the masters to tell when nothing is remembered of the attempt.
        """
        ended = self._ended.get(key)
        if ended is None:
            targets = tuple(sources)
            if not targets or len(self._ended) >= MAX_REMEMBERED:
                return []
            self._ended[key] = _Ended(targets, "unknown request", now, now)
        elif now - ended.sent_at < AGAIN_SECONDS:
            return []
        else:
            ended.sent_at = now
        return self._release(key)

    def tick(self, now: float) -> list[Publication]:
        """Return what is to be sent again, and forget what is old."""
        while self._ended:
            oldest = next(iter(self._ended))
            if now - self._ended[oldest].ended_at < REMEMBER_SECONDS:
                break
            del self._ended[oldest]
        publications: list[Publication] = []
        while self._again and self._again[0][0] <= now:
            _, key = self._again.popleft()
            if key in self._ended:
                self._ended[key].sent_at = now
                publications += self._release(key)
        return publications

    @property
    def has_work(self) -> bool:
        """Whether something will be sent again or forgotten."""
        return bool(self._ended)

    def _release(self, key: RequestKey) -> list[Publication]:
        ended = self._ended[key]
        message = Release(request_id=key.request_id, attempt=key.attempt, reason=ended.reason)
        return [self._postbox.to_stage(target, message) for target in ended.targets]

"""Requests and tokens per minute, and requests at once: what is left, and when more is. Pure.

A minute is the last 60 seconds, estimated from two counts: those of this calendar minute, and
the part of the previous one that is not over. So there is no moment at which all comes back at
once, and several gateways need to share no more than counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

from gateway.access.keys import Limits
from gateway.errors import ApiError

MINUTE_SECONDS: Final = 60.0
_BUSY_SECONDS: Final = 1
"""When to come again where too many requests are open: nobody knows when one ends."""


@dataclass(frozen=True, slots=True)
class Window:
    """What was counted in the previous calendar minute and in this one."""

    previous: int = 0
    current: int = 0

    def used(self, elapsed: float) -> float:
        """Return what counts as used ``elapsed`` seconds into this minute."""
        return self.current + self.previous * (1 - elapsed / MINUTE_SECONDS)

    def wait_seconds(self, allowed: float, elapsed: float) -> float:
        """Return the seconds until no more than ``allowed`` counts as used."""
        if self.used(elapsed) <= allowed:
            return 0.0
        left = MINUTE_SECONDS - elapsed
        if self.current <= allowed:
            # While the previous minute fades out.
            return left - MINUTE_SECONDS * (allowed - self.current) / self.previous
        return left + MINUTE_SECONDS * (1 - allowed / self.current)

    def reset_seconds(self, elapsed: float) -> float:
        """Return the seconds until nothing counts as used."""
        left = MINUTE_SECONDS - elapsed
        if self.current:
            return left + MINUTE_SECONDS
        return left if self.previous else 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a caller uses, its present request included.

    Attributes:
        tokens: Without those of the present request.
        num_open: Requests that are open.
        elapsed: Seconds into the calendar minute.
    """

    requests: Window
    tokens: Window
    num_open: int
    elapsed: float


def rate_headers(limits: Limits, usage: Usage) -> dict[str, str]:
    """Return OpenAI's ``x-ratelimit-*`` for the limits that there are."""
    headers: dict[str, str] = {}
    for kind, limit, window in (
        ("requests", limits.requests_per_minute, usage.requests),
        ("tokens", limits.tokens_per_minute, usage.tokens),
    ):
        if limit is not None:
            left = max(int(limit - window.used(usage.elapsed)), 0)
            headers[f"x-ratelimit-limit-{kind}"] = str(limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(left)
            headers[f"x-ratelimit-reset-{kind}"] = duration(window.reset_seconds(usage.elapsed))
    return headers


def refusal(limits: Limits, usage: Usage, name: str) -> ApiError | None:
    """Return the 429 for a request that is over a limit, or None.

    A request is let in while the minute's tokens are not used up, and may then use more: a
    prompt longer than the limit would never be let in otherwise. What it uses counts.
    """
    requests, tokens, concurrency = (
        limits.requests_per_minute,
        limits.tokens_per_minute,
        limits.concurrency,
    )
    if requests is not None and usage.requests.used(usage.elapsed) > requests:
        wait = usage.requests.wait_seconds(requests - 1, usage.elapsed)
        return _over(name, f"{requests} requests per minute", ceil(wait))
    if tokens is not None and usage.tokens.used(usage.elapsed) >= tokens:
        wait = usage.tokens.wait_seconds(tokens - 1, usage.elapsed)
        return _over(name, f"{tokens} tokens per minute", ceil(wait))
    if concurrency is not None and usage.num_open > concurrency:
        return _over(name, f"{concurrency} requests at once", _BUSY_SECONDS)
    return None


def duration(seconds: float) -> str:
    """Return a time as OpenAI writes it: ``120ms``, ``59s``, ``1m30s``."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms" if seconds > 0 else "0s"
    minutes, rest = divmod(ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _over(name: str, limit: str, wait_seconds: int) -> ApiError:
    wait = max(wait_seconds, 1)
    return ApiError(
        429,
        f"the key {name!r} has reached its limit of {limit}; try again in {wait} s",
        code="rate_limit_exceeded",
        kind="rate_limit_error",
        headers={"Retry-After": str(wait)},
    )

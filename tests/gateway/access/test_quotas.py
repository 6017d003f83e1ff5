"""Requests and tokens per minute: what is left, and when more is; counts here and in Redis."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.counters import OPEN_SECONDS, Counters, MemoryCounters
from gateway.access.keys import Limits
from gateway.access.quotas import Usage, Window, duration, rate_headers, refusal
from gateway.access.shared import RedisAccess

COUNT = st.integers(0, 500)
ELAPSED = st.floats(0, 59.999)


def later(window: Window, elapsed: float, seconds: float) -> float:
    """Return what counts as used after some seconds in which nothing is counted."""
    total = elapsed + seconds
    if total < 60:
        return window.used(total)
    if total < 120:
        return Window(window.current, 0).used(total - 60)
    return 0.0


@given(COUNT, COUNT, ELAPSED, COUNT)
def test_a_wait_ends_when_so_much_is_allowed_again_and_not_before(
    previous: int, current: int, elapsed: float, allowed: int
) -> None:
    window = Window(previous, current)
    wait = window.wait_seconds(allowed, elapsed)
    assert later(window, elapsed, wait + 1e-6) <= allowed + 1e-6
    if wait > 0.01:
        assert later(window, elapsed, wait - 0.01) > allowed


@given(COUNT, COUNT, ELAPSED)
def test_after_the_reset_nothing_counts(previous: int, current: int, elapsed: float) -> None:
    window = Window(previous, current)
    assert later(window, elapsed, window.reset_seconds(elapsed) + 1e-9) == pytest.approx(0)


def test_the_headers_are_openais_and_only_for_limits_that_there_are() -> None:
    usage = Usage(Window(0, 3), Window(60, 40), 1, 30.0)
    assert rate_headers(Limits(), usage) == {}
    assert rate_headers(Limits(requests_per_minute=10, tokens_per_minute=100), usage) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "7",
        "x-ratelimit-reset-requests": "1m30s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "30",
        "x-ratelimit-reset-tokens": "1m30s",
    }


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.12, "120ms"), (59.2, "1m0s"), (12, "12s"), (90, "1m30s")]
)
def test_times_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("limits", "named", "retry"),
    [
        (Limits(requests_per_minute=2), "2 requests per minute", "70"),
        (Limits(tokens_per_minute=50), "50 tokens per minute", "32"),
        (Limits(concurrency=1), "1 requests at once", "1"),
    ],
)
def test_over_a_limit_is_a_429_that_names_it_and_says_when_to_come_again(
    limits: Limits, named: str, retry: str
) -> None:
    usage = Usage(Window(0, 3), Window(0, 50), 2, 30.0)
    error = refusal(limits, usage, "lamp")
    assert error is not None
    assert error.status == 429
    assert error.code == "rate_limit_exceeded"
    assert named in error.message
    assert error.headers["Retry-After"] == retry


def test_what_is_within_all_limits_is_let_in() -> None:
    usage = Usage(Window(0, 2), Window(0, 49), 1, 30.0)
    limits = Limits(requests_per_minute=2, tokens_per_minute=50, concurrency=1)
    assert refusal(limits, usage, "lamp") is None


# --- counters, both kinds -------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 600.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    """Let what a counter writes later be written."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "redis"])
async def counters(
    request: pytest.FixtureRequest, clock: Clock, redis_url: str
) -> AsyncIterator[Counters]:
    if request.param == "memory":
        yield MemoryCounters(clock)
        return
    shared = RedisAccess(redis_url, "lab", clock)
    yield shared
    await shared.close()


async def test_requests_and_tokens_count_in_their_minute_and_the_next(
    counters: Counters, clock: Clock
) -> None:
    await counters.enter("a", "r1")
    counters.charge("a", 30)
    await settle()
    clock.now += 65
    usage = await counters.enter("a", "r2")
    assert (usage.requests, usage.tokens, usage.elapsed) == (Window(1, 1), Window(30, 0), 5.0)
    clock.now += 120
    assert (await counters.enter("a", "r3")).requests == Window(0, 1)


async def test_callers_count_apart(counters: Counters) -> None:
    await counters.enter("a", "r1")
    usage = await counters.enter("b", "r2")
    assert (usage.requests, usage.num_open) == (Window(0, 1), 1)


async def test_who_was_not_let_in_has_used_nothing(counters: Counters) -> None:
    await counters.enter("a", "r1")
    await counters.enter("a", "r2")
    counters.back_out("a", "r2")
    await settle()
    usage = await counters.enter("a", "r3")
    assert (usage.requests, usage.num_open) == (Window(0, 2), 2)


async def test_an_open_request_counts_until_it_ends_or_nobody_renews_it(
    counters: Counters, clock: Clock
) -> None:
    for name in ("ended", "renewed", "forgotten"):
        await counters.enter("a", name)
    clock.now += OPEN_SECONDS - 1
    counters.leave("a", "ended")
    counters.renew("a", "renewed")
    await settle()
    clock.now += 2
    assert (await counters.enter("a", "new")).num_open == 2


async def test_a_request_that_has_ended_counts_no_more_when_the_next_one_follows_at_once(
    counters: Counters,
) -> None:
    for number in range(10):
        usage = await counters.enter("a", f"r{number}")
        assert (usage.num_open, usage.tokens.current) == (1, 3 * number)
        counters.charge("a", 3)
        counters.leave("a", f"r{number}")


async def test_gateways_count_together_through_redis(redis_url: str, clock: Clock) -> None:
    here, there = RedisAccess(redis_url, "lab", clock), RedisAccess(redis_url, "lab", clock)
    await here.enter("a", "r1")
    here.charge("a", 7)
    await settle()
    usage = await there.enter("a", "r2")
    assert (usage.requests, usage.tokens, usage.num_open) == (Window(0, 2), Window(0, 7), 2)
    await here.close()
    await there.close()


async def test_without_redis_a_gateway_counts_alone_and_waits_once(
    clock: Clock, caplog: pytest.LogCaptureFixture, unused_tcp_port: int
) -> None:
    counters = RedisAccess(f"redis://127.0.0.1:{unused_tcp_port}/0", "lab", clock)
    for name in ("r1", "r2"):
        usage = await counters.enter("a", name)
    counters.charge("a", 5)
    await settle()
    assert (usage.requests, usage.num_open) == (Window(0, 2), 2)
    assert (await counters.enter("a", "r3")).tokens == Window(0, 5)
    assert caplog.text.count("Redis does not answer") == 1
    await counters.close()


async def test_a_redis_that_hangs_holds_up_one_request_only(clock: Clock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        counters = RedisAccess(f"redis://127.0.0.1:{port}/0", "lab", clock)
        await counters.enter("a", "r1")
        # Within the pause nobody talks to it: this would take half a second each otherwise.
        usages = [await counters.enter("a", f"r{number}") for number in range(2, 30)]
        assert usages[-1].num_open == 29
        await counters.close()

"""Who answers a client's prompts, in a real Redis and without one."""

import logging
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from gateway.claims import CLAIM_SECONDS, RETRY_SECONDS, RedisClaims

SITE = "home"
KEY = "e2llm:home:prompts:lamp"


@pytest.fixture
async def claims(redis_url: str) -> AsyncIterator[list[RedisClaims]]:
    each = [RedisClaims(redis_url, SITE, owner) for owner in ("first", "second", "third")]
    yield each
    for claims in each:
        await claims.stop()


async def test_the_first_who_claims_a_client_has_it_again_and_again(
    claims: list[RedisClaims],
) -> None:
    first, second, _ = claims
    assert await first.take("lamp")
    assert not await second.take("lamp")
    assert await first.take("lamp")
    assert await second.take("door")


async def test_a_claim_lasts_some_seconds_after_it_was_taken_last(
    claims: list[RedisClaims], redis_url: str
) -> None:
    first, *_ = claims
    async with Redis.from_url(redis_url) as redis:
        await first.take("lamp")
        await redis.pexpire(KEY, 50)

        await first.take("lamp")

        assert CLAIM_SECONDS * 500 < await redis.pttl(KEY) <= CLAIM_SECONDS * 1000


async def test_who_stops_gives_back_what_is_still_his(
    claims: list[RedisClaims], redis_url: str
) -> None:
    first, second, third = claims
    await first.take("lamp")
    await first.take("door")
    async with Redis.from_url(redis_url) as redis:
        await redis.delete("e2llm:home:prompts:door")
    await second.take("door")

    await first.stop()

    assert await second.take("lamp")
    assert not await third.take("door")


async def test_claims_that_have_ended_are_forgotten(redis_url: str) -> None:
    now = [0.0]
    claims = RedisClaims(redis_url, SITE, "first", now=lambda: now[0])
    for number in range(50):
        now[0] = number
        await claims.take(f"client-{number}")

    assert len(claims._claimed) <= CLAIM_SECONDS + 1
    await claims.stop()


async def test_without_redis_everybody_answers_and_it_is_not_asked_for_every_prompt(
    caplog: pytest.LogCaptureFixture, unused_tcp_port: int
) -> None:
    now = [100.0]
    url = f"redis://127.0.0.1:{unused_tcp_port}/0"
    claims = RedisClaims(url, SITE, "first", now=lambda: now[0])
    caplog.set_level(logging.WARNING, "gateway.claims")

    assert [await claims.take("lamp") for _ in range(3)] == [True, True, True]
    assert len(caplog.records) == 1
    now[0] += RETRY_SECONDS
    assert await claims.take("lamp")
    assert len(caplog.records) == 2
    assert "answered by every gateway" in caplog.text
    await claims.stop()

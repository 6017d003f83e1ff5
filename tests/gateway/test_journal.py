import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from broker.control import ModelManifest
from broker.events import Logprobs
from broker.work import Sampling
from gateway.journal import NoJournal, RedisJournal, open_journal
from gateway.requests import GeneratedToken, Generation, JournalUnavailableError
from tests.support.bus import free_port

MODEL = ModelManifest(name="tiny", revision="rev", config={}, tensors={}, weights="bfloat16")
GENERATION = Generation(
    request_id="r1",
    prompt_ids=(5, 6),
    max_tokens=9,
    sampling=Sampling(temperature=0.5, seed=77, logit_bias={3: 1.5}),
    body={"prompt": "zebra-marker", "broken": "\ud800"},
)
KEY = "e2llm:lab:request:r1"
DEAD_REDIS = f"redis://127.0.0.1:{free_port()}/0"


def token(token_id: int, logprobs: Logprobs | None = None) -> GeneratedToken:
    return GeneratedToken(0, token_id, None, logprobs)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def stopped_in_time(journal: RedisJournal) -> None:
    """Stop it; unlike with `asyncio.timeout`, nothing in it can swallow the end of the wait."""
    stopping = asyncio.create_task(journal.stop())
    done, _ = await asyncio.wait({stopping}, timeout=5)
    assert done, "it does not stop"
    await stopping


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client: Redis = Redis.from_url(redis_url, decode_responses=True)
    yield client
    await client.aclose()


async def tokens_in(redis: Redis) -> list[str]:
    found: Any = await redis.lrange(f"{KEY}:tokens", 0, -1)
    return list(found)


async def fields_in(redis: Redis) -> dict[str, str]:
    found: Any = await redis.hgetall(KEY)
    return dict(found)


async def test_a_request_is_written_with_all_that_repeating_it_needs(
    redis: Redis, redis_url: str
) -> None:
    journal = RedisJournal(redis_url, "lab")
    await journal.start()

    journal.begin(GENERATION, MODEL)
    journal.token("r1", token(10))
    journal.token("r1", token(11))
    journal.end("r1", "finished")
    await journal.stop()

    fields = await fields_in(redis)
    assert json.loads(fields["body"]) == GENERATION.body
    assert json.loads(fields["prompt_ids"]) == [5, 6]
    assert fields["seed"] == "77"
    parameters = json.loads(fields["parameters"])
    assert parameters["max_tokens"] == 9
    assert parameters["sampling"]["logit_bias"] == {"3": 1.5}
    assert (fields["model"], fields["revision"], fields["weights"]) == ("tiny", "rev", "bfloat16")
    assert fields["status"] == "finished"
    assert await tokens_in(redis) == ["10", "11"]


async def test_log_probabilities_are_kept_beside_their_tokens(redis: Redis, redis_url: str) -> None:
    journal = RedisJournal(redis_url, "lab")
    await journal.start()
    known = (Logprobs(-0.5, ((10, -0.5), (7, -1.25))), Logprobs(-0.25))

    journal.begin(replace(GENERATION, generated=(10,), generated_logprobs=known[:1]), MODEL)
    journal.token("r1", token(11, known[1]))
    journal.end("r1", "finished")
    await journal.stop()

    assert await tokens_in(redis) == ["10 [-0.5,[[10,-0.5],[7,-1.25]]]", "11 [-0.25,[]]"]
    later = RedisJournal(redis_url, "lab")
    found = await later.read("r1")
    await later.stop()
    assert found is not None
    assert (found.tokens, found.logprobs) == ((10, 11), known)


async def test_tokens_appear_while_the_request_runs_and_entries_expire(
    redis: Redis, redis_url: str
) -> None:
    journal = RedisJournal(redis_url, "lab", expire_seconds=500)
    await journal.start()
    journal.begin(GENERATION, MODEL)
    journal.token("r1", token(10))
    async with asyncio.timeout(20):
        while await tokens_in(redis) != ["10"]:
            await asyncio.sleep(0.005)
    journal.token("r1", token(11))

    async with asyncio.timeout(20):
        while await tokens_in(redis) != ["10", "11"]:
            await asyncio.sleep(0.005)

    assert (await fields_in(redis))["status"] == "running"
    assert 0 < await redis.ttl(KEY) <= 500
    assert 0 < await redis.ttl(f"{KEY}:tokens") <= 500
    await journal.stop()


async def test_what_was_written_is_read_back_also_by_a_later_gateway(
    redis: Redis, redis_url: str
) -> None:
    journal = RedisJournal(redis_url, "lab")
    await journal.start()
    journal.begin(GENERATION, MODEL)
    journal.token("r1", token(10))
    at_once = await journal.read("r1")
    await journal.stop()
    later = RedisJournal(redis_url, "lab")

    written = await later.read("r1")

    assert at_once == written
    assert written is not None
    assert written.tokens == (10,)
    assert json.loads(written.fields["body"]) == GENERATION.body
    assert await later.read("r2") is None
    assert [await later.count_stream("r1"), await later.count_stream("r1")] == [1, 2]
    await later.stop()


async def test_an_answer_that_goes_on_keeps_the_tokens_that_it_has(
    redis: Redis, redis_url: str
) -> None:
    journal = RedisJournal(redis_url, "lab")
    await journal.start()
    journal.begin(GENERATION, MODEL)
    journal.token("r1", token(10))
    journal.end("r1", "cancelled")

    journal.begin(replace(GENERATION, request_id="r1~1", entry="r1", generated=(10,)), MODEL)
    journal.token("r1", token(11))
    await journal.stop()

    assert await tokens_in(redis) == ["10", "11"]
    assert (await fields_in(redis))["status"] == "running"
    assert await redis.ttl(KEY) > 0


async def test_without_redis_reading_says_so() -> None:
    for journal in (open_journal(None, "lab", Path()), RedisJournal(DEAD_REDIS, "lab")):
        with pytest.raises(JournalUnavailableError):
            await journal.read("r1")
        with pytest.raises(JournalUnavailableError):
            await journal.count_stream("r1")


async def test_without_redis_everything_goes_on_and_the_journal_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    journal = RedisJournal(f"redis://127.0.0.1:{free_port()}/0", "lab", sleep=pause)
    with caplog.at_level(logging.INFO):
        await journal.start()
        journal.begin(GENERATION, MODEL)
        journal.token("r1", token(10))
        await until(lambda: len(pauses) > 2)
        journal.end("r1", "finished")
        await journal.stop()

    assert not journal.is_available
    warnings = [r for r in caplog.records if "Redis does not answer" in r.message]
    assert len(warnings) == 1
    assert "zebra-marker" not in caplog.text


async def test_what_was_said_while_redis_was_away_is_written_when_it_is_back(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = RedisJournal(redis_url, "lab", sleep=lambda seconds: asyncio.sleep(0.001))
    write = journal._write
    is_away = asyncio.Event()

    async def perhaps(changed: Any) -> None:
        await write(changed)
        if is_away.is_set():  # The answer is lost: nobody knows whether it was written.
            raise ConnectionError

    monkeypatch.setattr(journal, "_write", perhaps)
    await journal.start()
    journal.begin(GENERATION, MODEL)
    journal.token("r1", token(10))
    await until(lambda: journal.is_available)
    is_away.set()
    journal.token("r1", token(11))
    await until(lambda: not journal.is_available)
    journal.token("r1", token(12))
    journal.end("r1", "finished")
    is_away.clear()
    await until(lambda: journal.is_available)
    await journal.stop()

    assert await tokens_in(redis) == ["10", "11", "12"]
    assert (await fields_in(redis))["status"] == "finished"


async def test_what_redis_has_dropped_is_written_again_with_an_expiry(
    redis: Redis, redis_url: str
) -> None:
    journal = RedisJournal(redis_url, "lab", expire_seconds=500)
    await journal.start()
    journal.begin(GENERATION, MODEL)
    journal.token("r1", token(10))
    while await tokens_in(redis) != ["10"]:
        await asyncio.sleep(0.005)
    await redis.flushdb()

    journal.token("r1", token(11))
    while await tokens_in(redis) != ["10", "11"]:
        await asyncio.sleep(0.005)
    await journal.stop()

    assert (await fields_in(redis))["seed"] == "77"
    assert 400 < await redis.ttl(KEY) <= 500
    assert 400 < await redis.ttl(f"{KEY}:tokens") <= 500


async def test_it_stops_at_whatever_moment_of_its_first_conversation_with_redis(
    redis_url: str,
) -> None:
    # In Python 3.11 a cancellation is lost while redis-py sends: about every second of these.
    for num_turns in range(40):
        journal = RedisJournal(redis_url, "lab")
        await journal.start()
        for _ in range(num_turns):
            await asyncio.sleep(0)

        await stopped_in_time(journal)

        assert journal.is_available


async def test_a_redis_that_hangs_does_not_keep_it_from_stopping() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        journal = RedisJournal(f"redis://127.0.0.1:{server.getsockname()[1]}/0", "lab")
        await journal.start()
        journal.begin(GENERATION, MODEL)
        connection, _ = await asyncio.get_running_loop().sock_accept(server)
        with connection:
            await stopped_in_time(journal)

    assert not journal.is_available


async def test_without_a_url_nothing_is_kept() -> None:
    journal = open_journal(None, "lab", Path())

    await journal.start()
    journal.begin(GENERATION, MODEL)
    journal.token("r1", token(1))
    journal.end("r1", "finished")
    await journal.stop()

    assert isinstance(journal, NoJournal)
    assert not journal.is_available

"""What a killed gateway leaves to the next one while Redis hangs."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from broker.control import ModelManifest
from broker.work import Sampling
from gateway.entries import new_entry
from gateway.journal import RedisJournal
from gateway.requests import GeneratedToken, Generation, Written
from gateway.spool import Spool

MODEL = ModelManifest(name="tiny", revision="rev", config={}, tensors={})
KEY = "e2llm:lab:request:r1"


def generation(name: str = "r1") -> Generation:
    return Generation(
        request_id=name,
        prompt_ids=(5, 6),
        max_tokens=9,
        sampling=Sampling(seed=77),
        body={"prompt": "zebra-marker"},
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


class Hanging(RedisJournal):
    """A journal whose Redis hangs from when it is told to."""

    hangs = False

    async def _write(self, changed: Any) -> None:
        if self.hangs:
            raise RedisTimeoutError
        await super()._write(changed)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client: Redis = Redis.from_url(redis_url, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
async def journal(redis_url: str, tmp_path: Path) -> AsyncIterator[Hanging]:
    journal = Hanging(redis_url, "lab", spool=Spool(tmp_path))
    await journal.start()
    await until(lambda: journal.is_available)
    yield journal
    await journal.stop()


def size(folder: Path) -> int:
    path = folder / "journal.spool"
    return path.stat().st_size if path.exists() else 0


def kill(journal: RedisJournal) -> None:
    """From now on it writes no more to the file, which is the next one's."""
    journal._spool = None


async def read_later(journal: RedisJournal, turns: int) -> asyncio.Task[Written | None]:
    """Let the loop turn so often, then begin to read."""
    for _ in range(turns):
        await asyncio.sleep(0)
    return asyncio.create_task(journal.read("r1"))


async def say(journal: RedisJournal, folder: Path, *tokens: int) -> None:
    """Say tokens and wait until they are in the spool."""
    before = size(folder)
    for token in tokens:
        journal.token("r1", GeneratedToken(0, token, None))
    await until(lambda: size(folder) > before)


async def test_a_request_that_redis_never_saw_is_known_after_a_restart(
    journal: Hanging, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    journal.hangs = True
    journal.begin(generation(), MODEL)
    await say(journal, tmp_path, 10, 11)
    kill(journal)

    next_one = RedisJournal(redis_url, "lab", spool=Spool(tmp_path))
    await next_one.start()
    found = await next_one.read("r1")
    await until(lambda: next_one.is_available)
    await next_one.stop()

    assert found is not None
    assert found.tokens == (10, 11)
    assert found.fields["seed"] == "77"
    # And Redis has it again, for gateways that do not have this file.
    assert await redis.lrange(f"{KEY}:tokens", 0, -1) == ["10", "11"]
    assert (await redis.hgetall(KEY))["status"] == "running"
    assert size(tmp_path) == 0


async def test_tokens_beyond_those_in_redis_are_known_after_a_restart(
    journal: Hanging, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    journal.begin(generation(), MODEL)
    await say(journal, tmp_path, 10, 11)
    await until(lambda: size(tmp_path) == 0)
    # Not written, and not known yet to be so: a Redis that hangs answers nothing for a while.
    answered = asyncio.Event()

    async def never(changed: Any) -> None:
        await answered.wait()

    journal._write = never  # type: ignore[method-assign]
    await say(journal, tmp_path, 12)
    await say(journal, tmp_path, 13)
    kill(journal)

    next_one = RedisJournal(redis_url, "lab", spool=Spool(tmp_path))
    await next_one.start()
    found = await next_one.read("r1")
    await until(lambda: next_one.is_available and size(tmp_path) == 0)
    await next_one.stop()
    answered.set()

    assert found is not None
    assert found.tokens == (10, 11, 12, 13)
    assert await redis.lrange(f"{KEY}:tokens", 0, -1) == ["10", "11", "12", "13"]


async def test_what_the_spool_had_is_known_while_it_goes_back_to_redis(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    entry = new_entry(generation(), MODEL)
    await redis.hset(KEY, mapping={str(name): value for name, value in entry.fields.items()})
    await redis.rpush(f"{KEY}:tokens", "10", "11")
    entry.tokens, entry.num_written = ["10", "11", "12"], 2
    Spool(tmp_path).append({"r1": entry})

    # Read again and again, at every place that the taking over can have reached.
    next_one = RedisJournal(redis_url, "lab", spool=Spool(tmp_path))
    await next_one.start()
    reading = [await read_later(next_one, after) for after in range(40)]
    found = await asyncio.gather(*reading)
    await until(lambda: size(tmp_path) == 0)
    await next_one.stop()

    assert [written.tokens for written in found if written] == [(10, 11, 12)] * 40


async def test_a_redis_that_comes_back_empty_gets_it_all_again(
    journal: Hanging, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    journal.begin(generation(), MODEL)
    await say(journal, tmp_path, 10)
    await until(lambda: size(tmp_path) == 0)
    journal.hangs = True
    await say(journal, tmp_path, 11)
    await until(lambda: not journal.is_available)
    await say(journal, tmp_path, 12)
    await redis.flushdb()
    kill(journal)

    next_one = RedisJournal(redis_url, "lab", spool=Spool(tmp_path))
    await next_one.start()
    await until(lambda: next_one.is_available and size(tmp_path) == 0)
    await next_one.stop()

    assert await redis.lrange(f"{KEY}:tokens", 0, -1) == ["10", "11", "12"]


async def test_the_file_is_empty_when_redis_has_all_and_its_owners_alone(
    journal: Hanging, tmp_path: Path
) -> None:
    journal.begin(generation(), MODEL)
    await say(journal, tmp_path, 10)
    assert (tmp_path / "journal.spool").stat().st_mode & 0o077 == 0
    await until(lambda: size(tmp_path) == 0)


async def test_a_line_that_was_cut_off_is_left_out(
    journal: Hanging, redis_url: str, tmp_path: Path
) -> None:
    journal.hangs = True
    journal.begin(generation(), MODEL)
    await say(journal, tmp_path, 10, 11)
    path = tmp_path / "journal.spool"
    path.write_bytes(path.read_bytes() + b'{"entry":"r1","status":"run')

    entries, rests = Spool(tmp_path).read()

    assert entries["r1"].tokens == ["10", "11"]
    assert rests == {}


async def test_a_file_that_grows_keeps_only_what_redis_does_not_have(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    written, waiting = new_entry(generation(), MODEL), new_entry(generation("r2"), MODEL)
    for _ in range(40):
        written.tokens += ["1"] * 20_000
        waiting.tokens += ["2"] * 10
        spool.append({"r1": written, "r2": waiting})
    grown = spool.is_long
    written.num_written = len(written.tokens)

    spool.rewrite({"r1": written, "r2": waiting})

    assert (grown, spool.is_long) == (True, False)
    entries, rests = Spool(tmp_path).read()
    assert (set(entries), set(rests)) == ({"r2"}, set())
    assert entries["r2"].tokens == ["2"] * 400


async def test_a_folder_that_cannot_be_written_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "missing")
    with caplog.at_level(logging.WARNING):
        spool.append({"r1": new_entry(generation(), MODEL)})
        spool.append({"r1": new_entry(generation(), MODEL)})
    [record] = caplog.records
    assert "journal.spool cannot be written" in record.message
    assert "zebra-marker" not in caplog.text

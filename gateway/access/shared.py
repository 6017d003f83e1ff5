"""What the gateways of a site share of access, in Redis: the list of keys, and the counts.

Redis is memory, never authority: without it each gateway goes by its own copy of the list and
by its own counts, so that each gives a caller all of its limits. When Redis comes back, empty or
not, all know again what any knows.

Keys, for other readers: ``e2llm:<site>:keys`` is a hash of ids to records as JSON (with hashes
of keys, never keys), ``e2llm:<site>:quota:<key>:<minute>`` a hash with ``requests`` and
``tokens`` of a calendar minute, ``e2llm:<site>:open:<key>`` a sorted set of open requests by
the time until which they count.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.access.counters import OPEN_SECONDS, MemoryCounters, minute_of
from gateway.access.keys import Key, KeyRing, ring_of
from gateway.access.quotas import MINUTE_SECONDS, Usage, Window

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

# A request waits for it, so shorter than the journal's.
TIMEOUT_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 2.0
"""After a failure Redis is left alone for so long: no request waits for it in vain."""
_EXPIRE_SECONDS: Final = int(3 * MINUTE_SECONDS)


class RedisAccess:
    """Keys and counts of a site in Redis; a `SharedKeys` and a `Counters`.

    Args:
        url: ``redis://:password@host:port/0``.
        site: Part of every key.
        clock: UTC seconds.
    """

    def __init__(self, url: str, site: str, clock: Callable[[], float] = time.time) -> None:
        self._redis: Redis = Redis.from_url(
            url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
        )
        self._prefix = f"e2llm:{site}:"
        self._clock = clock
        self._local = MemoryCounters(clock)
        self._away_until = 0.0
        self._is_reported = False
        self._writes: dict[str, set[asyncio.Task[None]]] = {}

    async def close(self) -> None:
        """Wait for what is being written, and end the connections."""
        tasks = set().union(*self._writes.values())
        if tasks:
            await asyncio.wait(tasks, timeout=TIMEOUT_SECONDS)
        for task in tasks:
            task.cancel()
        try:
            await self._redis.aclose()
        except (RedisError, OSError) as error:
            logger.debug("Redis: %s", error)

    # --- keys --------------------------------------------------------------------------------

    async def exchange(self, ring: KeyRing) -> KeyRing | None:
        return await self._try(self._exchange(ring))

    async def _exchange(self, ring: KeyRing) -> KeyRing:
        name = f"{self._prefix}keys"
        known = ring_of(_readable(await self._redis.hgetall(name)))
        merged = known.merged(ring)
        news = {
            key_id: msgspec.json.encode(key)
            for key_id, key in merged.keys.items()
            if known.keys.get(key_id) != key
        }
        if news:
            await self._redis.hset(name, mapping=news)  # type: ignore[arg-type]
        return merged

    # --- counts ------------------------------------------------------------------------------

    async def enter(self, caller: str, request: str) -> Usage:
        usage = await self._local.enter(caller, request)
        # Who has read an answer to its end and asks again must not find it open still.
        if writes := self._writes.get(caller):
            await asyncio.wait(writes, timeout=TIMEOUT_SECONDS)
        return await self._try(self._enter(caller, request)) or usage

    async def _enter(self, caller: str, request: str) -> Usage:
        now = self._clock()
        opened, minute = f"{self._prefix}open:{caller}", minute_of(now)
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hincrby(self._quota(caller, minute), "requests", 1)
            pipeline.expire(self._quota(caller, minute), _EXPIRE_SECONDS)
            pipeline.hget(self._quota(caller, minute), "tokens")
            pipeline.hmget(self._quota(caller, minute - 1), ["requests", "tokens"])
            pipeline.zremrangebyscore(opened, 0, now)
            pipeline.zadd(opened, {request: now + OPEN_SECONDS})
            pipeline.expire(opened, _EXPIRE_SECONDS)
            pipeline.zcard(opened)
            found = await pipeline.execute()
        requests, _, tokens, before, *_, num_open = found
        return Usage(
            Window(int(before[0] or 0), int(requests)),
            Window(int(before[1] or 0), int(tokens or 0)),
            int(num_open),
            now % MINUTE_SECONDS,
        )

    def back_out(self, caller: str, request: str) -> None:
        self._local.back_out(caller, request)
        self._later(caller, self._count(caller, "requests", -1))
        self._later(caller, self._leave(caller, request))

    def charge(self, caller: str, num_tokens: int) -> None:
        self._local.charge(caller, num_tokens)
        self._later(caller, self._count(caller, "tokens", num_tokens))

    def renew(self, caller: str, request: str) -> None:
        self._local.renew(caller, request)
        self._later(caller, self._renew(caller, request))

    def leave(self, caller: str, request: str) -> None:
        self._local.leave(caller, request)
        self._later(caller, self._leave(caller, request))

    async def _count(self, caller: str, field: str, number: int) -> None:
        quota = self._quota(caller, minute_of(self._clock()))
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hincrby(quota, field, number)
            pipeline.expire(quota, _EXPIRE_SECONDS)
            await pipeline.execute()

    async def _renew(self, caller: str, request: str) -> None:
        until = self._clock() + OPEN_SECONDS
        # Only what is there: the request may have ended meanwhile.
        await self._redis.zadd(f"{self._prefix}open:{caller}", {request: until}, xx=True)

    async def _leave(self, caller: str, request: str) -> None:
        await self._redis.zrem(f"{self._prefix}open:{caller}", request)

    def _quota(self, caller: str, minute: int) -> str:
        return f"{self._prefix}quota:{caller}:{minute}"

    # --- Redis, or not -----------------------------------------------------------------------

    def _later(self, caller: str, work: Coroutine[Any, Any, None]) -> None:
        """Do what only the caller's next request waits for; lost while Redis does not answer."""
        task = asyncio.create_task(self._try(work))
        self._writes.setdefault(caller, set()).add(task)
        task.add_done_callback(lambda _: self._written(caller, task))

    def _written(self, caller: str, task: asyncio.Task[None]) -> None:
        self._writes[caller].discard(task)
        if not self._writes[caller]:
            del self._writes[caller]

    async def _try(self, work: Coroutine[Any, Any, ResultT]) -> ResultT | None:
        """Return what the work returns; None while Redis does not answer."""
        if time.monotonic() < self._away_until:
            work.close()
            return None
        try:
            found = await work
        except (RedisError, OSError) as error:
            self._away_until = time.monotonic() + RETRY_SECONDS
            if not self._is_reported:
                logger.warning(
                    "access: Redis does not answer (%s); known keys stay in force, and limits "
                    "count for each gateway alone",
                    error,
                )
            self._is_reported = True
            return None
        if self._is_reported:
            logger.info("access: Redis answers again")
        self._is_reported = False
        return found


def _readable(stored: Mapping[bytes | str, bytes | str]) -> list[Key]:
    keys = []
    for key_id, text in stored.items():
        try:
            keys.append(msgspec.json.decode(text, type=Key))
        except ValueError as error:
            logger.warning("access: the record of key %r in Redis is damaged: %s", key_id, error)
    return keys

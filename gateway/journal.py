"""What was asked and answered, kept in Redis for an hour.

Redis is memory, never authority: while it is down requests go on, and `Journal.is_available`
says so. When it comes back, live requests are written again from their beginning; until then
they are in a file of this gateway (`gateway.spool`), for the one that follows it. Nothing here
blocks the event loop for longer than a write to that file, and nothing is logged but ids.

Keys, for other readers: ``e2llm:<site>:request:<id>`` is a hash (``body``, ``prompt_ids``,
``seed``, ``parameters``, ``model``, ``revision``, ``weights``, ``status``, ``started_at``,
``created``, ``caller``, who may have it again, and ``streams``, how often it went on over
another connection), ``e2llm:<site>:request:<id>:tokens`` a list of token ids, each followed,
where log probabilities were asked for, by a space and a JSON array: that of the token, and
pairs of the most probable ids and theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from broker.control import ModelManifest
from gateway.entries import Entry, as_written, item_of, new_entry
from gateway.requests import GeneratedToken, Generation, JournalUnavailableError, Written
from gateway.spool import Rest, Spool

logger = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 0.05
RETRY_SECONDS: Final = 1.0
TIMEOUT_SECONDS: Final = 2.0
STOP_SECONDS: Final = 1.0
"""At most this long a stop waits for each: what runs, and what is left to write."""
EXPIRE_SECONDS: Final = 3600
MAX_ENDED: Final = 1000
"""Ended requests that wait for Redis to come back; older ones go without a journal."""


class Journal(Protocol):
    """Where requests are written down. Every call returns at once."""

    @property
    def is_available(self) -> bool:
        """Whether what is said now will be written."""

    def begin(self, generation: Generation, model: ModelManifest | None) -> None:
        """A request was accepted, or goes on with the tokens that it has."""

    def token(self, entry: str, token: GeneratedToken) -> None:
        """The next token of its answer was delivered."""

    def end(self, entry: str, status: str) -> None:
        """It ended: ``finished``, ``cancelled`` or ``failed``."""

    async def read(self, entry: str) -> Written | None:
        """Return what is known of a request; None: nothing (any more).

        Raises:
            JournalUnavailableError: Redis does not answer, or there is none.
        """

    async def count_stream(self, entry: str) -> int:
        """Count one more stream of an answer, over all gateways, and return the number.

        Raises:
            JournalUnavailableError: Redis does not answer, or there is none.
        """

    async def start(self) -> None:
        """Begin to write."""

    async def stop(self) -> None:
        """Write what is left, if Redis answers, and close."""


class NoJournal:
    """The journal of a gateway without Redis."""

    is_available = False

    def begin(self, generation: Generation, model: ModelManifest | None) -> None:
        pass

    def token(self, entry: str, token: GeneratedToken) -> None:
        pass

    def end(self, entry: str, status: str) -> None:
        pass

    async def read(self, entry: str) -> Written | None:
        raise JournalUnavailableError("this gateway keeps no journal; E2LLM_REDIS is not set")

    async def count_stream(self, entry: str) -> int:
        raise JournalUnavailableError("this gateway keeps no journal; E2LLM_REDIS is not set")

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


class RedisJournal:
    """A journal in Redis; tokens are appended at most 50 ms late.

    Args:
        url: ``redis://:password@host:port/0``.
        site: Part of every key.
        spool: Where what Redis has not confirmed is kept; None: nowhere.
        expire_seconds: How long an entry stays after its last change.
        sleep: Replaced by tests.
    """

    def __init__(
        self,
        url: str,
        site: str,
        *,
        spool: Spool | None = None,
        expire_seconds: int = EXPIRE_SECONDS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._redis: Redis = Redis.from_url(
            url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
        )
        self._prefix = f"e2llm:{site}:request:"
        self._expire_seconds = expire_seconds
        self._sleep = sleep
        self._spool = spool
        self._entries: dict[str, Entry] = {}
        self._rests: dict[str, Rest] = {}
        self._changed: dict[str, Entry] = {}
        self._unspooled: dict[str, Entry] = {}
        self._spool_timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._is_available = False
        self._is_reported = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_available(self) -> bool:
        return self._is_available

    def begin(self, generation: Generation, model: ModelManifest | None) -> None:
        entry = generation.journal_id
        self._entries[entry] = new_entry(generation, model)
        self._touch(entry)

    def token(self, entry: str, token: GeneratedToken) -> None:
        known = self._entries.get(entry)
        if known is not None:
            known.tokens.append(item_of(token.token_id, token.logprobs))
            self._touch(entry)

    def end(self, entry: str, status: str) -> None:
        known = self._entries.get(entry)
        if known is not None and not known.is_closed:
            known.fields["status"] = status
            known.is_closed = True
            self._touch(entry)

    async def read(self, entry: str) -> Written | None:
        known = self._entries.get(entry)
        if known is None:
            with self._answering():
                known = await self._fetch(entry)
        return None if known is None else as_written(dict(known.fields), known.tokens)

    async def count_stream(self, entry: str) -> int:
        with self._answering():
            return int(await self._redis.hincrby(self._prefix + entry, "streams", 1))

    async def start(self) -> None:
        if self._spool is not None:
            entries, self._rests = self._spool.read()
            for entry, found in entries.items():
                self._changed[entry] = self._entries.setdefault(entry, found)
        # Not awaited: a gateway does not wait for Redis.
        self._task = asyncio.create_task(self._run(), name="journal")

    async def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._task is not None:
            # Ends a pause, or waiting for a Redis that hangs. Not to be relied on: redis-py
            # sends within `asyncio.wait_for`, which in Python 3.11 drops a cancellation that
            # meets its result (gh-86296). The loop then ends because it is told to stop.
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=STOP_SECONDS)
        if not self._is_reported:
            last = asyncio.create_task(self._try_flush(), name="journal-last")
            _, late = await asyncio.wait({last}, timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
        self._spool_now()
        if self._spool is not None:
            self._spool.close()
        with contextlib.suppress(RedisError, OSError):
            await self._redis.aclose()

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            raise JournalUnavailableError(f"Redis does not answer ({error})") from error

    # --- the background ----------------------------------------------------------------------

    def _touch(self, request_id: str) -> None:
        self._changed[request_id] = self._unspooled[request_id] = self._entries[request_id]
        self._wake.set()
        self._spool_soon()

    def _spool_soon(self) -> None:
        # Beside the writing to Redis, which waits when that hangs.
        if self._spool is not None and self._spool_timer is None:
            loop = asyncio.get_running_loop()
            self._spool_timer = loop.call_later(FLUSH_SECONDS, self._spool_now)

    def _spool_now(self) -> None:
        if self._spool_timer is not None:
            self._spool_timer.cancel()
        self._spool_timer = None
        unspooled, self._unspooled = self._unspooled, {}
        if self._spool is not None and unspooled:
            self._spool.append(unspooled)

    def _tidy_spool(self) -> None:
        """Forget in the spool what Redis has now."""
        if self._spool is None or self._rests:
            return
        if not self._changed:
            self._unspooled.clear()
            self._spool.clear(self._entries.values())
        elif self._spool.is_long:
            self._unspooled.clear()
            self._spool.rewrite(self._entries)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            await self._try_flush()
            if self._is_available:
                await self._wake.wait()
            if self._stopping.is_set():
                return
            # Batches what comes in the meantime; without Redis, the time to the next try.
            await self._sleep(FLUSH_SECONDS if self._is_available else RETRY_SECONDS)

    async def _try_flush(self) -> None:
        """Write what has changed; when that fails, remember that it must be written again."""
        self._wake.clear()
        changed: dict[str, Entry] = {}
        try:
            await self._complete_rests()
            changed, self._changed = self._changed, {}
            await self._write(changed)
        except (RedisError, OSError) as error:
            if not self._is_reported:
                logger.warning("journal: Redis does not answer (%s); going on without", error)
            self._is_available, self._is_reported = False, True
            self._write_all_again()
            return
        except asyncio.CancelledError:
            self._write_all_again()
            raise
        if self._is_reported:
            logger.info("journal: Redis answers again")
        self._is_available, self._is_reported = True, False
        for request_id, entry in changed.items():
            if entry.is_closed and request_id not in self._changed:
                self._entries.pop(request_id, None)
        self._tidy_spool()

    async def _fetch(self, entry: str) -> Entry | None:
        """Return an entry as Redis and the spool of an earlier run have it."""
        key = self._prefix + entry
        rest = self._rests.get(entry)  # before the wait, in which `_complete_rests` may take it
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hgetall(key)
            pipeline.lrange(f"{key}:tokens", 0, -1)
            fields, tokens = await pipeline.execute()
        if not fields:
            return None
        items = [token.decode() for token in tokens]
        return Entry(
            {name.decode(): value.decode() for name, value in fields.items()},
            rest.after(items) if rest is not None else items,
            is_closed=True,
        )

    async def _complete_rests(self) -> None:
        """Make entries of what an earlier run had beyond Redis."""
        for name in list(self._rests):
            found = await self._fetch(name)
            if found is not None and name not in self._entries:
                found.fields.pop("streams", None)  # counted in Redis, perhaps just now
                self._changed[name] = self._entries[name] = found
            del self._rests[name]

    async def _write(self, changed: dict[str, Entry]) -> None:
        if not changed:
            await self._redis.ping()
            return
        written: list[tuple[Entry, int]] = []
        appended: dict[int, str] = {}
        # A transaction, so that an entry is never there without its expiry.
        async with self._redis.pipeline(transaction=True) as pipeline:
            for request_id, entry in changed.items():
                written.append((entry, len(entry.tokens)))
                if self._is_appended(entry):
                    appended[len(pipeline)] = request_id
                    fresh = entry.tokens[entry.num_written or 0 :]
                    # Not where the list has gone: it would be back without an expiry.
                    pipeline.rpushx(self._tokens_key(request_id), *fresh)
                else:
                    self._add_to(pipeline, request_id, entry)
            answers = await pipeline.execute()
        for entry, num_tokens in written:
            entry.num_written = num_tokens
        for place, request_id in appended.items():
            entry = changed[request_id]
            if answers[place] != entry.num_written:
                entry.num_written = None
                self._changed[request_id] = entry
                self._wake.set()

    def _is_appended(self, entry: Entry) -> bool:
        """Return whether tokens alone are new, and the entry's expiry is far away."""
        is_fresh = time.monotonic() < entry.refreshed_at + self._expire_seconds / 4
        return bool(entry.num_written) and not entry.is_closed and is_fresh

    def _add_to(self, pipeline: Pipeline, request_id: str, entry: Entry) -> None:
        """Write fields, new tokens and the expiry of both."""
        key, tokens = self._prefix + request_id, self._tokens_key(request_id)
        if entry.num_written is None:
            pipeline.delete(tokens)
        fresh = entry.tokens[entry.num_written or 0 :]
        fields: dict[Any, Any] = dict(entry.fields)
        if entry.num_written is not None:
            fields = {"status": entry.fields["status"]}
        pipeline.hset(key, mapping=fields)
        pipeline.expire(key, self._expire_seconds)
        if fresh:
            pipeline.rpush(tokens, *fresh)
        if entry.tokens:
            pipeline.expire(tokens, self._expire_seconds)
        entry.refreshed_at = time.monotonic()

    def _tokens_key(self, request_id: str) -> str:
        return f"{self._prefix}{request_id}:tokens"

    def _write_all_again(self) -> None:
        """A write may have happened or not, or Redis come back empty: begin anew."""
        ended = [key for key, entry in self._entries.items() if entry.is_closed]
        for key in ended[: max(len(ended) - MAX_ENDED, 0)]:
            del self._entries[key]
        for entry in self._entries.values():
            entry.num_written = entry.num_spooled = None
        self._changed = dict(self._entries)
        self._unspooled = dict(self._entries)
        self._spool_soon()


def open_journal(url: str | None, site: str, state: Path) -> Journal:
    """Return the journal at a Redis URL, or one that keeps nothing without a URL.

    Args:
        url: ``redis://:password@host:port/0``.
        site: Part of every key.
        state: The gateway's state folder, for what Redis has not confirmed.
    """
    return RedisJournal(url, site, spool=Spool(state)) if url is not None else NoJournal()

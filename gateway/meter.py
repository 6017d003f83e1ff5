"""What each request costs, who pays for it, and the list of requests that people see.

It stands between the API and the engine: a request is let in here, its tokens are counted as
they pass, and its end is noted, whichever door it came through.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from gateway.access.caller import ANYBODY, Caller, Visit
from gateway.access.counters import OPEN_SECONDS, Counters, MemoryCounters, Uncounted
from gateway.access.keys import NO_LIMITS
from gateway.access.quotas import rate_headers, refusal
from gateway.answers import Piece
from gateway.course import Stretch
from gateway.requests import EngineError, Generation

logger = logging.getLogger(__name__)

MAX_ENDED: Final = 200
"""Ended requests that the list still has."""
_RENEW_SECONDS: Final = OPEN_SECONDS / 3


@dataclass(slots=True)
class Entry:
    """One request, with all its choices.

    Attributes:
        id: The answer's.
        slot: Unlike it, another one each time that somebody reads the answer.
        prompt_tokens: Of all its prompts.
        answer_tokens: Of all choices so far.
        state: ``waiting`` for its first token, ``answering``, ``finished``, ``failed`` or
            ``cancelled``.
        began_at, ended_at: UTC seconds.
        ttft_seconds: Time to the first token, waiting included.
        is_read: Whether anybody has begun to read the answer.
    """

    id: str
    slot: str
    caller: Caller
    model: str
    num_choices: int
    prompt_tokens: int
    began_at: float
    renewed_at: float
    answer_tokens: int = 0
    state: str = "waiting"
    ttft_seconds: float | None = None
    ended_at: float | None = None
    is_read: bool = False

    def body(self, now: float, course: Sequence[Stretch]) -> dict[str, Any]:
        """Return what ``GET /fog/requests`` says of it: figures, never texts.

        ``course`` is that of its first choice.
        """
        return {
            "id": self.id,
            "caller": self.caller.name,
            "model": self.model,
            "state": self.state,
            "choices": self.num_choices,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
            "began_at": round(self.began_at, 3),
            "ttft_seconds": None if self.ttft_seconds is None else round(self.ttft_seconds, 4),
            "seconds": round((self.ended_at or now) - self.began_at, 3),
            "phases": [stretch.body() for stretch in course],
        }


def said_of(entry: Entry) -> dict[str, Any]:
    """Return the fields of the log about a request that ended: figures, never texts."""
    return {
        "request_id": entry.id,
        "state": entry.state,
        "prompt_tokens": entry.prompt_tokens,
        "answer_tokens": entry.answer_tokens,
        "seconds": round((entry.ended_at or entry.began_at) - entry.began_at, 3),
    }


class Meter:
    """Counts for callers, and remembers requests.

    Args:
        counters: Of what each caller uses.
        clock: UTC seconds.
    """

    def __init__(
        self, counters: Counters | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._counters: Counters = counters or MemoryCounters(clock)
        self._uncounted: Counters = Uncounted()
        self._clock = clock
        self._open: dict[str, Entry] = {}
        self._ended: OrderedDict[str, Entry] = OrderedDict()

    async def admit(
        self, visit: Visit, answer_id: str, model: str, generations: Sequence[Generation]
    ) -> Entry:
        """Let a request in and note it; fill in what its answer says of the caller's limits.

        Raises:
            ApiError: 429 with ``Retry-After``; the request then counts for nothing.
        """
        caller, slot = visit.caller, generations[0].request_id
        counters = self._of(caller)
        usage = await counters.enter(caller.id, slot)
        visit.rate_headers = rate_headers(caller.limits, usage)
        if (error := refusal(caller.limits, usage, caller.name)) is not None:
            counters.back_out(caller.id, slot)
            raise error
        # Choices of one prompt share it.
        num_prompt_tokens = sum(map(len, {each.prompt_ids for each in generations}))
        counters.charge(caller.id, num_prompt_tokens)
        self._forget_unread()
        now = self._clock()
        entry = Entry(answer_id, slot, caller, model, len(generations), num_prompt_tokens, now, now)
        self._open[slot] = entry
        return entry

    async def watch(
        self, entry: Entry, pieces: AsyncGenerator[Piece, None], num_known: int = 0
    ) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of an answer that was let in, and note what becomes of it.

        Args:
            entry: What `admit` returned.
            pieces: Of all its choices.
            num_known: How many come from the journal, and were paid for when they were made.
        """
        entry.is_read = True
        num_finished = 0
        state = "cancelled"
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    self._count(entry)
                    num_finished += piece.finish_reason is not None
                    yield piece
            state = "finished"
        except EngineError:
            state = "failed"
            raise
        finally:
            if num_finished == entry.num_choices:
                # Who has read the last piece need not ask for the end.
                state = "finished"
            num_new = max(entry.answer_tokens - num_known, 0)
            self._of(entry.caller).charge(entry.caller.id, num_new)
            self._end(entry, state)

    def requests(
        self, courses: Mapping[str, Sequence[Stretch]], caller: Caller = ANYBODY
    ) -> list[dict[str, Any]]:
        """Return the body of ``GET /fog/requests``: the open ones, then the latest that ended.

        Args:
            courses: Of choices by their ids, as far as they are known.
            caller: Who asks, and sees what he may read.
        """
        self._forget_unread()
        now = self._clock()
        entries = (*self._open.values(), *reversed(self._ended.values()))
        return [
            entry.body(now, courses.get(entry.slot, ()))
            for entry in entries
            if caller.may_read(entry.caller.id)
        ]

    def _of(self, caller: Caller) -> Counters:
        return self._uncounted if caller.limits == NO_LIMITS else self._counters

    def _count(self, entry: Entry) -> None:
        now = self._clock()
        entry.answer_tokens += 1
        entry.state = "answering"
        if entry.ttft_seconds is None:
            entry.ttft_seconds = now - entry.began_at
        if now - entry.renewed_at > _RENEW_SECONDS:
            entry.renewed_at = now
            self._of(entry.caller).renew(entry.caller.id, entry.slot)

    def _end(self, entry: Entry, state: str) -> None:
        entry.state, entry.ended_at = state, self._clock()
        self._of(entry.caller).leave(entry.caller.id, entry.slot)
        logger.info("request %s %s", entry.id, state, extra=said_of(entry))
        self._open.pop(entry.slot, None)
        self._ended[entry.slot] = entry
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def _forget_unread(self) -> None:
        """End what nobody came to read: clients that left before their answer began."""
        limit = self._clock() - OPEN_SECONDS
        for entry in list(self._open.values()):
            if entry.began_at > limit:
                return
            if not entry.is_read:
                self._end(entry, "cancelled")

"""What can end a request early: its client leaves, or the gateway stops.

Both end the work on the nodes at once, for streams and for whole answers alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.answers import Event
from gateway.errors import (
    CLIENT_CLOSED_REQUEST,
    ApiError,
    body_too_long,
    internal_error,
    stopping_error,
)
from gateway.framing import SERVER_SENT_EVENTS, Framing

ResultT = TypeVar("ResultT")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body; `ApiError` 413 as soon as it is longer than ``max_bytes``."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise body_too_long(max_bytes)
    return bytes(body)


async def run_unless_interrupted(
    receive: Receive, stopping: asyncio.Event, work: Coroutine[Any, Any, ResultT]
) -> ResultT:
    """Return what ``work`` returns; cancel it when the client leaves or the gateway stops.

    Raises:
        ApiError: 499 when the client has left, 503 when the gateway stops.
    """
    task = asyncio.create_task(work)
    async with _interruption(receive, stopping) as interrupted:
        try:
            await _first_of(task, interrupted)
            if task.done():
                return task.result()
            raise interrupted.result()
        finally:
            await _cancel(task)


class EventStream(Response):
    """A streamed answer, an event at a time.

    The status line is sent with the first event, or with the first keep-alive: an error
    before that is an HTTP error, an error after that the last event.

    Args:
        events: Closed in any case. It raises `ApiError`; all else is a bug.
        stopping: Set when the gateway stops.
        keep_alive_seconds: A keep-alive is sent after this silence, so that proxies and
            clients wait through a queue or a slow prefill.
        framing: How all this stands on the wire.
    """

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        *,
        stopping: asyncio.Event,
        keep_alive_seconds: float,
        framing: Framing = SERVER_SENT_EVENTS,
    ) -> None:
        self.status_code = 200
        self.media_type = framing.media_type
        self._framing = framing
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        # No length is known before the end.
        del self.headers["content-length"]
        self._events = events
        self._stopping = stopping
        self._keep_alive_seconds = keep_alive_seconds
        self._started = False
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._sent_at = asyncio.get_running_loop().time()
        task = asyncio.create_task(self._send_events(send))
        async with _interruption(receive, self._stopping) as interrupted:
            try:
                await _first_of(task, interrupted)
            finally:
                if not task.done():
                    await _cancel(task)
                await self._events.aclose()
        if not task.cancelled():
            task.result()
            return
        reason = interrupted.result()
        if not self._started:
            raise reason
        if reason.status != CLIENT_CLOSED_REQUEST:
            await self._send_error(send, reason)

    async def _send_events(self, send: Send) -> None:
        keeping_alive = asyncio.create_task(self._keep_alive(send))
        try:
            async for event in self._events:
                await self._send(send, self._framing.event(event))
        except Exception as error:
            if not self._started:
                raise
            if isinstance(error, ApiError):
                await self._send_error(send, error)
                return
            await self._send_error(send, internal_error())
            raise
        else:
            await self._send(send, self._framing.end())
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await _cancel(keeping_alive)

    async def _keep_alive(self, send: Send) -> None:
        """Say that the stream is alive whenever it was silent for long: never returns."""
        loop = asyncio.get_running_loop()
        while True:
            left = self._sent_at + self._keep_alive_seconds - loop.time()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._send(send, self._framing.keep_alive())

    async def _send_error(self, send: Send, answer: ApiError) -> None:
        await self._send(send, self._framing.error(answer))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, data: bytes) -> None:
        self._sent_at = asyncio.get_running_loop().time()
        if not self._started:
            self._started = True
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
        await send({"type": "http.response.body", "body": data, "more_body": True})


@asynccontextmanager
async def _interruption(
    receive: Receive, stopping: asyncio.Event
) -> AsyncIterator[asyncio.Future[ApiError]]:
    """Give a future that is done, with the answer, when the request cannot go on."""

    async def watch() -> ApiError:
        gone = asyncio.create_task(_disconnected(receive))
        stopped = asyncio.create_task(stopping.wait())
        try:
            await _first_of(gone, stopped)
            if gone.done():
                return ApiError(CLIENT_CLOSED_REQUEST, "the client has left")
            return stopping_error()
        finally:
            await _cancel(gone)
            await _cancel(stopped)

    watcher = asyncio.create_task(watch())
    try:
        yield watcher
    finally:
        await _cancel(watcher)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def _cancel(future: asyncio.Future[Any]) -> None:
    """Cancel and wait until the work has really ended, whatever it ended with."""
    future.cancel()
    try:
        await asyncio.gather(future, return_exceptions=True)
    finally:
        # Cancelled while waiting, too: an error that nobody asks for would be logged.
        future.add_done_callback(_look)


def _look(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()

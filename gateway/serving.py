"""Between HTTP and `gateway.inference`: bodies in, answers out, whole or streamed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from gateway.bodies import BodyT, check_body, parse_object
from gateway.connection import EventStream, read_body, run_unless_interrupted
from gateway.forms import Form, RequestT
from gateway.framing import SERVER_SENT_EVENTS, Framing
from gateway.inference import Answer, Inference
from gateway.settings import Settings


@dataclass(frozen=True, slots=True)
class Serving:
    """What every route for text needs.

    Attributes:
        stopping: Set when the process is about to stop; ends what is open with an error.
    """

    inference: Inference
    settings: Settings
    stopping: asyncio.Event

    async def read(self, http: Request) -> tuple[dict[str, Any], int]:
        """Return the JSON object of a body and its length; `ApiError` if it is none."""
        # Read by hand: FastAPI's own reading has no limit and other errors.
        body = await read_body(http, self.settings.max_body_bytes)
        return parse_object(body), len(body)

    async def read_as(self, http: Request, body_type: type[BodyT]) -> tuple[BodyT, int]:
        """Return a checked body and its length; `ApiError` where it is wrong."""
        content, num_bytes = await self.read(http)
        return check_body(content, body_type), num_bytes

    async def answer(self, http: Request, form: Form[RequestT]) -> Response:
        """Answer a request whose body is of one form."""
        content, num_bytes = await self.read(http)
        return await self.deliver(http, await self.inference.begin(content, form, num_bytes))

    async def deliver(
        self, http: Request, found: Answer[Any], framing: Framing = SERVER_SENT_EVENTS
    ) -> Response:
        """Send an answer, whole or as a stream; the work ends when the client leaves."""
        if found.is_streamed:
            return EventStream(
                found.events(),
                stopping=self.stopping,
                keep_alive_seconds=self.settings.keep_alive_seconds,
                framing=framing,
            )
        text = await run_unless_interrupted(http.receive, self.stopping, found.whole())
        return Response(text, media_type="application/json")

"""How the chunks of a streamed answer stand on the wire: server-sent events or JSON lines. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.answers import Event
from gateway.errors import ApiError

JSON_LINES: Final = "application/x-ndjson"


class Framing(Protocol):
    """Turns events, silence, errors and the end into bytes."""

    @property
    def media_type(self) -> str:
        """Of the response."""

    def event(self, event: Event) -> bytes:
        """Return one chunk."""

    def keep_alive(self) -> bytes:
        """Return what tells a client, after a silence, that its answer is still to come."""

    def error(self, error: ApiError) -> bytes:
        """Return the last words of a stream that failed."""

    def end(self) -> bytes:
        """Return what follows the last chunk."""


class ServerSentEvents:
    """A ``data`` line per event, ``[DONE]`` at the end, comments in between."""

    media_type = "text/event-stream"

    def event(self, event: Event) -> bytes:
        # JSON and `[DONE]` have no line feed outside of escapes, so one line is enough.
        head = "" if event.id is None else f"id: {event.id}\n"
        name = "" if event.name is None else f"event: {event.name}\n"
        return f"{name}{head}data: {event.data}\n\n".encode()

    def keep_alive(self) -> bytes:
        return b": keep-alive\n\n"

    def error(self, error: ApiError) -> bytes:
        return self.event(Event(json.dumps(error.body(), ensure_ascii=False)))

    def end(self) -> bytes:
        return self.event(Event("[DONE]"))


@dataclass(frozen=True, slots=True)
class JsonLines:
    """A JSON object per line, as Ollama streams.

    Attributes:
        silence: The object of a keep-alive; there are no comments.
    """

    silence: str
    media_type: str = JSON_LINES

    def event(self, event: Event) -> bytes:
        return f"{event.data}\n".encode()

    def keep_alive(self) -> bytes:
        return f"{self.silence}\n".encode()

    def error(self, error: ApiError) -> bytes:
        return f"{json.dumps({'error': error.message}, ensure_ascii=False)}\n".encode()

    def end(self) -> bytes:
        return b""


SERVER_SENT_EVENTS = ServerSentEvents()

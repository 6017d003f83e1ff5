"""Answers of ``/v1/responses``: items of text and of calls, whole or as typed events."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Final

from gateway.answers import Chunk, Event, Piece
from gateway.errors import ApiError
from gateway.forms import CHAT, Form
from gateway.framing import ServerSentEvents
from gateway.requests import Generation
from gateway.responses import Response, Usage
from gateway.schemas import ChatRequest

Pieces = AsyncGenerator[Piece, None]
Item = dict[str, Any]


class ResponseBody(Response):
    """A response, at any time of its life.

    Attributes:
        status: ``in_progress``, ``completed``, ``incomplete``, ``failed`` or ``cancelled``.
    """

    id: str
    object: str
    created_at: int
    status: str
    model: str
    output: list[Item]
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    incomplete_details: dict[str, str] | None
    background: bool
    parallel_tool_calls: bool
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    temperature: float | None
    top_p: float | None
    max_output_tokens: int | None


def body_of_response(
    head: dict[str, Any],
    request: ChatRequest,
    status: str,
    *,
    output: Sequence[Item] = (),
    usage: Usage | None = None,
    num_reasoning: int = 0,
    error: dict[str, Any] | None = None,
    background: bool = False,
) -> ResponseBody:
    """Return a response with a status."""
    choice = request.tool_choice
    return ResponseBody(
        id=head["id"],
        object="response",
        created_at=head["created"],
        status=status,
        model=head["model"],
        output=list(output),
        usage=None if usage is None else _usage(usage, num_reasoning),
        error=error,
        incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
        background=background,
        parallel_tool_calls=True,
        tool_choice=choice if isinstance(choice, str) else _named(choice),
        tools=[
            {"type": "function", **tool.for_template()["function"]} for tool in request.tools or ()
        ],
        temperature=request.temperature,
        top_p=request.top_p,
        max_output_tokens=request.max_completion_tokens,
    )


def _named(choice: Any) -> str | dict[str, Any]:
    return "auto" if choice is None else {"type": "function", "name": choice.function.name}


def _usage(usage: Usage, num_reasoning: int) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": num_reasoning},
        "total_tokens": usage.total_tokens,
    }


class _Writer:
    """Writes the events of one response, and keeps its items."""

    def __init__(
        self, request: ChatRequest, head: dict[str, Any], generations: Sequence[Generation]
    ) -> None:
        self._request = request
        self._head = head
        self._generations = generations
        self._num_events = 0
        self._num_tokens = self._num_cached = self._num_reasoning = 0
        self._reason: str | None = None
        self._is_open = False
        self._items: list[Item] = []

    def begin(self) -> Iterator[Chunk]:
        body = body_of_response(self._head, self._request, "in_progress").model_dump()
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, is_head=True, response=body)

    def take(self, piece: Piece) -> Iterator[Chunk]:
        self._num_tokens += 1
        self._num_cached += piece.cached_tokens
        self._num_reasoning += bool(piece.reasoning)
        self._reason = piece.finish_reason
        if piece.text:
            if not self._is_open or self._items[-1]["type"] != "message":
                yield from self._close()
                yield from self._open_message()
            self._items[-1]["content"][0]["text"] += piece.text
            yield self._event(
                "response.output_text.delta",
                content_index=0,
                delta=piece.text,
                logprobs=[],
                **self._place(),
            )
        for call in piece.calls:
            if call.id is not None:
                yield from self._close()
                yield from self._open_call(call.id, call.name or "")
            if call.arguments:
                self._items[-1]["arguments"] += call.arguments
                yield self._event(
                    "response.function_call_arguments.delta",
                    delta=call.arguments,
                    **self._place(),
                )

    def end(self) -> Iterator[Chunk]:
        yield from self._close()
        body = self.body()
        yield self._event(f"response.{body.status}", response=body.model_dump())

    def body(self) -> ResponseBody:
        """Return the response with all that came."""
        status = "incomplete" if self._reason == "length" else "completed"
        usage = Usage.of(self._generations, self._num_tokens, self._num_cached)
        return body_of_response(
            self._head,
            self._request,
            status,
            output=self._items,
            usage=usage,
            num_reasoning=self._num_reasoning,
        )

    def _open_message(self) -> Iterator[Chunk]:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {"type": "message", "id": self._id("msg"), "status": "in_progress"}
        item |= {"role": "assistant"}
        yield from self._open(item | {"content": []})
        self._items[-1]["content"] = [part]
        yield self._event(
            "response.content_part.added", content_index=0, part=dict(part), **self._place()
        )

    def _open_call(self, call_id: str, name: str) -> Iterator[Chunk]:
        item = {"type": "function_call", "id": self._id("fc"), "status": "in_progress"}
        yield from self._open(item | {"call_id": call_id, "name": name, "arguments": ""})

    def _open(self, item: Item) -> Iterator[Chunk]:
        self._items.append(item)
        self._is_open = True
        index = len(self._items) - 1
        yield self._event("response.output_item.added", output_index=index, item=dict(item))

    def _close(self) -> Iterator[Chunk]:
        if not self._is_open:
            return
        self._is_open = False
        item, place = self._items[-1], self._place()
        if item["type"] == "message":
            [part] = item["content"]
            yield self._event(
                "response.output_text.done",
                content_index=0,
                text=part["text"],
                logprobs=[],
                **place,
            )
            yield self._event("response.content_part.done", content_index=0, part=part, **place)
        else:
            yield self._event(
                "response.function_call_arguments.done",
                arguments=item["arguments"],
                name=item["name"],
                **place,
            )
        item["status"] = "incomplete" if self._reason == "length" else "completed"
        index = place["output_index"]
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _place(self) -> dict[str, Any]:
        return {"output_index": len(self._items) - 1, "item_id": self._items[-1]["id"]}

    def _id(self, prefix: str) -> str:
        # Of the response's id, so that one that is read again has the same items.
        key = f"{self._head['id']}/{len(self._items)}"
        return f"{prefix}_{hashlib.sha256(key.encode()).hexdigest()[:24]}"

    def _event(self, kind: str, *, is_head: bool = False, **fields: Any) -> Chunk:
        content = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        text = json.dumps(content, ensure_ascii=False)
        return Chunk(text, is_head=is_head, name=kind)


async def collect(
    request: ChatRequest,
    head: dict[str, Any],
    generations: Sequence[Generation],
    pieces: Pieces,
) -> ResponseBody:
    """Return the whole response."""
    writer = _Writer(request, head, generations)
    async with aclosing(stream(request, head, generations, pieces, writer)) as chunks:
        async for _ in chunks:
            pass
    return writer.body()


async def stream(
    request: ChatRequest,
    head: dict[str, Any],
    generations: Sequence[Generation],
    pieces: Pieces,
    writer: _Writer | None = None,
) -> AsyncGenerator[Chunk, None]:
    """Yield the events; nothing before the first token, as for chats."""
    writer = writer or _Writer(request, head, generations)
    has_begun = False
    async with aclosing(pieces):
        async for piece in pieces:
            if not has_begun:
                has_begun = True
                for chunk in writer.begin():
                    yield chunk
            for chunk in writer.take(piece):
                yield chunk
    for chunk in writer.end():
        yield chunk


class TypedEvents(ServerSentEvents):
    """Events whose end is the last of them, and whose errors are typed like the others."""

    def error(self, error: ApiError) -> bytes:
        content = {"type": "error", "code": error.code, "message": error.message}
        text = json.dumps(content | {"param": error.param}, ensure_ascii=False)
        return self.event(Event(text, name="error"))

    def end(self) -> bytes:
        return b""


def _form(id_prefix: str) -> Form[ChatRequest]:
    return Form(
        request_type=ChatRequest,
        id_prefix=id_prefix,
        prompt_param="input",
        default_max_tokens=None,
        encode=CHAT.encode,
        collect=collect,
        stream=stream,
        tools=CHAT.tools,
    )


TYPED_EVENTS: Final = TypedEvents()
RESPONSES: Final = _form("resp")
BACKGROUND: Final = _form("respbg")
"""Their ids say that they go on without a client, also after a gateway was started again."""

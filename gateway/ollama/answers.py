"""Answers as Ollama's clients read them: JSON lines, the last one with counts and times."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from gateway.answers import Chunk, Piece, Tally, tallies
from gateway.forms import CHAT, COMPLETION, Form
from gateway.framing import JsonLines
from gateway.requests import Generation
from gateway.responses import Response
from gateway.schemas import ChatRequest, CompletionRequest, GenerationRequest
from gateway.tools.shown import ShownCall

Pieces = AsyncGenerator[Piece, None]
Clock = Callable[[], int]


class CalledOllamaFunction(Response):
    """What is called; the arguments are an object, not its text."""

    name: str
    arguments: dict[str, Any]


class OllamaCall(Response):
    """A call of a tool."""

    function: CalledOllamaFunction


class OllamaMessage(Response):
    """The assistant's message, or what a line adds to it."""

    role: str
    content: str
    thinking: str | None = None
    tool_calls: list[OllamaCall] | None = None


class OllamaAnswer(Response):
    """One line of a stream, or a whole answer; times are in nanoseconds.

    Attributes:
        message: Of a chat.
        response: Of a text.
        thinking: What the model thought before it; of a chat, it is in the message.
        done_reason: ``stop``, ``length``, or ``load`` where nothing was asked.
        prompt_eval_duration: Until the first token, waiting included.
    """

    model: str
    created_at: str
    message: OllamaMessage | None = None
    response: str | None = None
    thinking: str | None = None
    done: bool
    done_reason: str | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


def line(
    model: str, text: str, thinking: str = "", *, is_chat: bool, done: bool = False
) -> OllamaAnswer:
    """Return a line with a text and no counts."""
    made = OllamaAnswer(model=model, created_at=datetime.now(UTC).isoformat(), done=done)
    if is_chat:
        made.message = OllamaMessage(role="assistant", content=text)
    else:
        made.response = text
    if thinking:
        (made if made.message is None else made.message).thinking = thinking
    return made


def nothing_asked(model: str, *, is_chat: bool) -> OllamaAnswer:
    """Return the answer to an empty prompt, by which clients load a model."""
    made = line(model, "", is_chat=is_chat, done=True)
    made.done_reason = "load"
    return made


def framing(model: str, *, is_chat: bool) -> JsonLines:
    """Return how a stream stands on the wire; a keep-alive is a line without text."""
    return JsonLines(line(model, "", is_chat=is_chat).json_text())


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes one kind of answer."""

    is_chat: bool

    async def collect(
        self,
        request: GenerationRequest,
        head: dict[str, Any],
        generations: Sequence[Generation],
        pieces: Pieces,
    ) -> OllamaAnswer:
        stopwatch = _Stopwatch()
        [tally] = await tallies(stopwatch.timed(pieces), 1)
        made = line(head["model"], tally.text, tally.reasoning, is_chat=self.is_chat, done=True)
        if made.message is not None and (calls := _complete(tally.calls)):
            made.message.tool_calls = calls
        stopwatch.write_into(made, generations[0], tally.finish_reason)
        return made

    async def stream(
        self,
        request: GenerationRequest,
        head: dict[str, Any],
        generations: Sequence[Generation],
        pieces: Pieces,
    ) -> AsyncGenerator[Chunk, None]:
        stopwatch = _Stopwatch()
        tally = Tally()
        async with aclosing(stopwatch.timed(pieces)) as timed:
            async for piece in timed:
                tally.add(piece)
                if piece.text or piece.reasoning:
                    text = line(head["model"], piece.text, piece.reasoning, is_chat=self.is_chat)
                    yield Chunk(text.json_text(), piece.choice)
        last = line(head["model"], "", is_chat=self.is_chat, done=True)
        if last.message is not None and (calls := _complete(tally.calls)):
            called = line(head["model"], "", is_chat=True)
            called.message = OllamaMessage(role="assistant", content="", tool_calls=calls)
            yield Chunk(called.json_text())
        stopwatch.write_into(last, generations[0], tally.finish_reason)
        yield Chunk(last.json_text())


def _complete(calls: Sequence[ShownCall]) -> list[OllamaCall]:
    """Return the calls whose arguments are an object; one that was cut off has none."""
    found = []
    for call in calls:
        with suppress(ValueError):
            function = CalledOllamaFunction(
                name=call.name or "", arguments=json.loads(call.arguments)
            )
            found.append(OllamaCall(function=function))
    return found


class _Stopwatch:
    """Times an answer's pieces."""

    def __init__(self, clock: Clock = time.monotonic_ns) -> None:
        self._clock = clock
        self._began = clock()
        self._first: int | None = None
        self._num_tokens = 0

    async def timed(self, pieces: Pieces) -> Pieces:
        async with aclosing(pieces):
            async for piece in pieces:
                if self._first is None:
                    self._first = self._clock()
                self._num_tokens += 1
                yield piece

    def write_into(self, answer: OllamaAnswer, generation: Generation, reason: str | None) -> None:
        now = self._clock()
        first = self._first or now
        # Ollama has no word for an end by a call.
        answer.done_reason = "stop" if reason == "tool_calls" else reason
        answer.total_duration = now - self._began
        answer.load_duration = 0
        answer.prompt_eval_count = len(generation.prompt_ids)
        answer.prompt_eval_duration = first - self._began
        answer.eval_count = self._num_tokens
        answer.eval_duration = now - first


def _form_of(ours: Form[Any], request_type: type[Any], writer: _Writer) -> Form[Any]:
    return Form(
        request_type=request_type,
        id_prefix="ollama",
        prompt_param=ours.prompt_param,
        # Ollama's own default: until the model ends, or the context does.
        default_max_tokens=None,
        encode=ours.encode,
        collect=writer.collect,
        stream=writer.stream,
        tools=ours.tools,
    )


OLLAMA_CHAT: Final = _form_of(CHAT, ChatRequest, _Writer(is_chat=True))
OLLAMA_GENERATE: Final = _form_of(CHAT, ChatRequest, _Writer(is_chat=False))
OLLAMA_RAW: Final = _form_of(COMPLETION, CompletionRequest, _Writer(is_chat=False))

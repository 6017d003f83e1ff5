"""From generated tokens to pieces of text: one choice, and several choices side by side.

Closing an iterator of this module closes the engine's, which cancels the work on the nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from gateway.logprobs import ShownToken, shown_token
from gateway.requests import GeneratedToken, Generation, GenerationFailedError, TokenSource
from gateway.text import Detokenizer, StopStrings, Tokenizer
from gateway.tools.calls import Parsed
from gateway.tools.schemas import ToolUse
from gateway.tools.shown import CallText, ShownCall


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds to an answer; the text may be empty.

    Attributes:
        choice: Index of the choice.
        finish_reason: ``stop`` or ``length`` on the last piece.
        calls: What the token adds to calls of tools.
        shown: The token with its log probabilities, where they were asked for. An end token
            has none: it is no part of the text.
        cached_tokens: Leading positions of the prompt that an earlier one had computed; on the
            first piece of a prompt's first choice.
        reasoning: What the token adds to what the model thinks before it answers.
    """

    choice: int
    text: str
    token_id: int
    finish_reason: str | None = None
    shown: ShownToken | None = None
    calls: tuple[ShownCall, ...] = ()
    cached_tokens: int = 0
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a streamed answer.

    Attributes:
        json: The event's data.
        choice: Whose piece it brings; None: it brings none.
        is_head: It comes before all pieces.
        name: Of the event, for clients that tell events apart by it.
    """

    json: str
    choice: int | None = None
    is_head: bool = False
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A chunk on its way to a client, and how far the answer is with it; None: no id."""

    data: str
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class Tally:
    """What a whole answer has, collected from its pieces."""

    text: str = ""
    reasoning: str = ""
    token_ids: list[int] = field(default_factory=list)
    shown: list[ShownToken] = field(default_factory=list)
    calls: list[ShownCall] = field(default_factory=list)
    finish_reason: str | None = None
    cached_tokens: int = 0

    def add(self, piece: Piece) -> None:
        """Add the next piece of the choice."""
        self.text += piece.text
        self.reasoning += piece.reasoning
        self.token_ids.append(piece.token_id)
        self.cached_tokens += piece.cached_tokens
        if piece.shown is not None:
            self.shown.append(piece.shown)
        for call in piece.calls:
            if call.id is not None:
                self.calls.append(call)
            else:
                known = self.calls[call.index]
                self.calls[call.index] = replace(known, arguments=known.arguments + call.arguments)
        self.finish_reason = piece.finish_reason


class AnswerText:
    """The text of one answer, token by token, up to its end token or first stop string.

    Args:
        prefix: Text that comes before that of the first token; no stop string is in it.
        tools: How calls of tools are read; None: all is text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        generation: Generation,
        stop: Sequence[str],
        choice: int,
        prefix: str = "",
        tools: ToolUse | None = None,
    ) -> None:
        self._calls: CallText | None = None
        self._markers: dict[int, str] = {}
        shown_markers: frozenset[int] = frozenset()
        if tools is not None:
            self._calls = CallText(tools, f"{generation.journal_id}/{choice}")
            found = {tokenizer.token_id(marker): marker for marker in tools.format.markers}
            markers = {token_id: text for token_id, text in found.items() if token_id is not None}
            if tools.has_channels:
                self._markers = markers
            else:
                shown_markers = frozenset(markers)
        self._tokenizer = tokenizer
        self._prefix = prefix
        self._offset = len(prefix)
        self._detokenizer = Detokenizer(tokenizer, generation.prompt_ids, shown_markers)
        self._stop = StopStrings(stop)
        self._eos_token_ids = frozenset(generation.sampling.eos_token_ids)
        self._min_tokens = generation.sampling.min_tokens
        self._choice = choice
        # As its tokens, a prompt's count once.
        self._counts_cached = generation.sampling.choice_index == 0

    def take(self, token: GeneratedToken) -> Piece:
        """Return the piece of the next token. After one with a finish reason comes none."""
        is_last, marker = token.finish_reason is not None, ""
        if token.token_id in self._eos_token_ids:
            text = ""
        elif marker := self._markers.get(token.token_id, ""):
            text = self._detokenizer.flush()
        else:
            text = self._detokenizer.feed(token.token_id)
        if is_last:
            text += self._detokenizer.flush()
        shown = self._shown(token)
        self._offset += len(text)
        prefix, self._prefix = self._prefix, ""
        told = Parsed()
        calls: tuple[ShownCall, ...] = ()
        if self._calls is not None and self._calls.has_channels:
            # A stop string ends what is shown; it may well be in what is not.
            told, calls = self._calls.take(text, marker, is_last=is_last)
            text = told.text
        stopped = False
        # As in vLLM, text within the first `min_tokens` tokens ends no answer.
        if token.index >= self._min_tokens:
            text, stopped = self._stop.feed(text)
        if is_last and not stopped:
            text += self._stop.flush()
        reason = "stop" if stopped else token.finish_reason
        if self._calls is not None:
            if not self._calls.has_channels:
                told, calls = self._calls.take(text, is_last=reason is not None)
                text = told.text
            if reason == "stop" and self._calls.num_calls:
                reason = "tool_calls"
        return Piece(
            self._choice,
            prefix + text,
            token.token_id,
            reason,
            shown,
            calls,
            cached_tokens=token.cached_tokens if self._counts_cached else 0,
            reasoning=told.reasoning,
        )

    def _shown(self, token: GeneratedToken) -> ShownToken | None:
        if token.logprobs is None or token.token_id in self._eos_token_ids:
            return None
        return shown_token(self._tokenizer, token.token_id, token.logprobs, self._offset)


async def answer(
    engine: TokenSource, generation: Generation, text: AnswerText
) -> AsyncGenerator[Piece, None]:
    """Yield the pieces of one choice.

    Raises:
        EngineError: What the engine raises; also when its tokens end without a reason.
    """
    tokens = engine.generate(generation)
    try:
        async for token in tokens:
            piece = text.take(token)
            yield piece
            if piece.finish_reason is not None:
                return
        raise GenerationFailedError("the answer ended without a finish reason")
    finally:
        await close_tokens(tokens)


def answers(
    engine: TokenSource,
    tokenizer: Tokenizer,
    generations: Sequence[Generation],
    stop: Sequence[str],
    prefixes: Sequence[str] = (),
    tools: ToolUse | None = None,
) -> AsyncGenerator[Piece, None]:
    """Yield the pieces of all choices of one request as they come.

    ``prefixes`` are texts before that of each choice, empty: none; ``tools`` says how calls
    are read.
    """
    prefixes = prefixes or [""] * len(generations)
    return side_by_side(
        [
            answer(
                engine,
                generation,
                AnswerText(tokenizer, generation, stop, choice, prefix, tools),
            )
            for choice, (generation, prefix) in enumerate(zip(generations, prefixes, strict=True))
        ]
    )


async def tallies(pieces: AsyncGenerator[Piece, None], num_choices: int) -> list[Tally]:
    """Return the whole answers, one per choice."""
    found = [Tally() for _ in range(num_choices)]
    async with aclosing(pieces):
        async for piece in pieces:
            found[piece.choice].add(piece)
    return found


async def side_by_side(
    choices: Sequence[AsyncGenerator[Piece, None]],
) -> AsyncGenerator[Piece, None]:
    """Yield the pieces of several choices as they come; the first error ends them all."""
    if len(choices) == 1:
        async with aclosing(choices[0]) as only:
            async for piece in only:
                yield piece
        return
    arrived: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()

    async def pump(choice: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(choice) as pieces:
                async for piece in pieces:
                    arrived.put_nowait(piece)
        except Exception as error:
            arrived.put_nowait(error)
        else:
            arrived.put_nowait(None)

    pumps = [asyncio.create_task(pump(choice)) for choice in choices]
    try:
        num_open = len(pumps)
        while num_open:
            item = await arrived.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def close_tokens(tokens: AsyncIterator[GeneratedToken]) -> None:
    """Close a source's iterator; the protocol promises that it can be closed."""
    close = getattr(tokens, "aclose", None)
    if close is not None:
        await close()

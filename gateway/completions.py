"""``POST /v1/completions``: texts or token ids to prompts, tokens to texts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final

from gateway.answers import Chunk, Piece, tallies
from gateway.logprobs import completion_logprobs
from gateway.model import ServedModel
from gateway.requests import Generation
from gateway.responses import Completion, TextChoice, Usage
from gateway.schemas import CompletionRequest

DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's default length of a completion."""


def encode_prompts(request: CompletionRequest, model: ServedModel) -> list[tuple[int, ...]]:
    """Return the token ids of each prompt; a text gets the tokenizer's special tokens."""
    return [
        model.tokenizer.encode(prompt, add_special_tokens=True)
        if isinstance(prompt, str)
        else tuple(prompt)
        for prompt in request.prompt
    ]


def prefixes(request: CompletionRequest, model: ServedModel) -> list[str]:
    """Return the prompts' texts where they are echoed, one per choice."""
    if not request.echo:
        return []
    texts = [
        prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)
        for prompt in request.prompt
    ]
    return [text for text in texts for _ in range(request.n or 1)]


async def collect(
    request: CompletionRequest,
    head: dict[str, Any],
    generations: Sequence[Generation],
    pieces: AsyncGenerator[Piece, None],
) -> Completion:
    """Return the whole answers."""
    found = await tallies(pieces, len(generations))
    choices = []
    for index, (tally, generation) in enumerate(zip(found, generations, strict=True)):
        choice = TextChoice(
            index=index,
            text=tally.text,
            logprobs=None if request.logprobs is None else completion_logprobs(tally.shown),
            finish_reason=tally.finish_reason,
        )
        if request.return_token_ids:
            choice.token_ids = tally.token_ids
            choice.prompt_token_ids = list(generation.prompt_ids)
        choices.append(choice)
    num_tokens = sum(len(tally.token_ids) for tally in found)
    num_cached = sum(tally.cached_tokens for tally in found)
    return Completion(
        **head,
        object="text_completion",
        choices=choices,
        usage=Usage.of(generations, num_tokens, num_cached),
    )


async def stream(
    request: CompletionRequest,
    head: dict[str, Any],
    generations: Sequence[Generation],
    pieces: AsyncGenerator[Piece, None],
) -> AsyncGenerator[Chunk, None]:
    """Yield the chunks, then one with usage if asked."""
    num_tokens = num_cached = 0
    begun: set[int] = set()

    def chunk(choices: list[TextChoice], usage: Usage | None = None) -> str:
        made = Completion(**head, object="text_completion", choices=choices)
        if request.include_usage:
            made.usage = usage  # null in all chunks but the last, as OpenAI sends it
        return made.json_text()

    async with aclosing(pieces):
        async for piece in pieces:
            num_tokens += 1
            num_cached += piece.cached_tokens
            if not (piece.text or piece.finish_reason or piece.shown or request.return_token_ids):
                continue
            choice = TextChoice(
                index=piece.choice,
                text=piece.text,
                logprobs=completion_logprobs([piece.shown]) if piece.shown else None,
                finish_reason=piece.finish_reason,
            )
            if request.return_token_ids:
                choice.token_ids = [piece.token_id]
                if piece.choice not in begun:
                    begun.add(piece.choice)
                    choice.prompt_token_ids = list(generations[piece.choice].prompt_ids)
            yield Chunk(chunk([choice]), piece.choice)
    if request.include_usage:
        yield Chunk(chunk([], Usage.of(generations, num_tokens, num_cached)))

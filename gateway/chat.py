"""``POST /v1/chat/completions``: messages to a prompt, tokens to messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from gateway.answers import Chunk, Piece, tallies
from gateway.errors import ApiError, invalid_value
from gateway.logprobs import chat_logprobs
from gateway.messages import Message
from gateway.model import ServedModel
from gateway.requests import Generation
from gateway.responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    Delta,
    Usage,
)
from gateway.schemas import ChatRequest
from gateway.template import ChatTemplateError


def encode_prompts(request: ChatRequest, model: ServedModel) -> list[tuple[int, ...]]:
    """Return the token ids of the one prompt that the messages make.

    Raises:
        ApiError: As `render`.
    """
    # The template writes the special tokens itself.
    text = render(request.messages, model)
    return [model.tokenizer.encode(text, add_special_tokens=False)]


def render(messages: Sequence[Message], model: ServedModel) -> str:
    """Return the text of the prompt that messages make.

    Raises:
        ApiError: The model has no chat template, or it refuses the messages.
    """
    if model.template is None:
        raise ApiError(
            400,
            f"model {model.name} has no chat template; use /v1/completions",
            param="messages",
            code="no_chat_template",
        )
    try:
        return model.template.render([message.for_template() for message in messages])
    except ChatTemplateError as error:
        raise invalid_value("messages", str(error)) from error


async def collect(
    request: ChatRequest,
    head: dict[str, Any],
    generations: Sequence[Generation],
    pieces: AsyncGenerator[Piece, None],
) -> ChatCompletion:
    """Return the whole answer."""
    found = await tallies(pieces, len(generations))
    choices = []
    for index, tally in enumerate(found):
        choice = ChatChoice(
            index=index,
            message=ChatMessage(role="assistant", content=tally.text, refusal=None),
            logprobs=chat_logprobs(tally.shown) if request.logprobs else None,
            finish_reason=tally.finish_reason,
        )
        if request.return_token_ids:
            choice.token_ids = tally.token_ids
        choices.append(choice)
    prompt_ids = generations[0].prompt_ids
    completion = ChatCompletion(
        **head,
        object="chat.completion",
        choices=choices,
        usage=Usage.of(generations, sum(len(tally.token_ids) for tally in found)),
    )
    if request.return_token_ids:
        completion.prompt_token_ids = list(prompt_ids)
    return completion


async def stream(
    request: ChatRequest,
    head: dict[str, Any],
    generations: Sequence[Generation],
    pieces: AsyncGenerator[Piece, None],
) -> AsyncGenerator[Chunk, None]:
    """Yield the chunks: roles first, finish reasons last, then usage if asked.

    Nothing is yielded before the first token, so that what fails before it is an HTTP error.
    """
    prompt_ids = generations[0].prompt_ids
    num_tokens = 0

    def chunk(choices: list[ChatChunkChoice], usage: Usage | None = None) -> ChatCompletionChunk:
        made = ChatCompletionChunk(**head, object="chat.completion.chunk", choices=choices)
        if request.include_usage:
            made.usage = usage  # null in all chunks but the last, as OpenAI sends it
        return made

    async with aclosing(pieces):
        async for piece in pieces:
            if num_tokens == 0:
                for index in range(len(generations)):
                    first = Delta(role="assistant", content="")
                    roles = chunk([ChatChunkChoice(index=index, delta=first, finish_reason=None)])
                    if request.return_token_ids:
                        roles.prompt_token_ids = list(prompt_ids)
                    yield Chunk(roles.json_text(), is_head=True)
            num_tokens += 1
            if piece.text or piece.finish_reason or piece.shown or request.return_token_ids:
                choice = ChatChunkChoice(
                    index=piece.choice,
                    delta=Delta(content=piece.text) if piece.text else Delta(),
                    logprobs=chat_logprobs([piece.shown]) if piece.shown else None,
                    finish_reason=piece.finish_reason,
                )
                if request.return_token_ids:
                    choice.token_ids = [piece.token_id]
                yield Chunk(chunk([choice]).json_text(), piece.choice)
    if request.include_usage:
        yield Chunk(chunk([], Usage.of(generations, num_tokens)).json_text())

"""``POST /v1/chat/completions``: messages to a prompt, tokens to messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from gateway.answers import Chunk, Piece, Tally, tallies
from gateway.errors import ApiError, invalid_value
from gateway.logprobs import chat_logprobs
from gateway.messages import Message
from gateway.model import ServedModel
from gateway.requests import Generation
from gateway.response_format import is_constrained
from gateway.responses import (
    CallDelta,
    CalledFunction,
    CallOfTool,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    Delta,
    FunctionDelta,
    Usage,
)
from gateway.schemas import ChatRequest
from gateway.template import ChatTemplateError
from gateway.tools.calls import ShapesMessages
from gateway.tools.schemas import Tool, ToolUse, tool_use
from gateway.tools.shown import ShownCall


def encode_prompts(request: ChatRequest, model: ServedModel) -> list[tuple[int, ...]]:
    """Return the token ids of the one prompt that the messages make.

    Raises:
        ApiError: As `render`.
    """
    use = tools(request, model)
    given = request.tools if use is not None and use.callees else None
    text = render(request.messages, model, given) + ("" if use is None else use.opening)
    # The template writes the special tokens itself.
    return [model.tokenizer.encode(text, add_special_tokens=False)]


def tools(request: ChatRequest, model: ServedModel) -> ToolUse | None:
    """Return how the answer uses tools; `ApiError` 400 where that is not possible."""
    return tool_use(
        request.tools,
        request.tool_choice,
        model.tool_format,
        model.name,
        is_json=is_constrained(request.response_format),
    )


def render(
    messages: Sequence[Message], model: ServedModel, given: Sequence[Tool] | None = None
) -> str:
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
    shown: list[Mapping[str, Any]] = [message.for_template() for message in messages]
    listed: Sequence[Mapping[str, Any]] | None = None
    if given is not None:
        listed = [tool.for_template() for tool in given]
    form: object = model.tool_format
    if isinstance(form, ShapesMessages):
        shown, listed = form.for_template(shown, listed)
    try:
        return model.template.render(shown, listed)
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
            message=_message(tally),
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
        usage=Usage.of(
            generations,
            sum(len(tally.token_ids) for tally in found),
            sum(tally.cached_tokens for tally in found),
        ),
    )
    if request.return_token_ids:
        completion.prompt_token_ids = list(prompt_ids)
    return completion


def _message(tally: Tally) -> ChatMessage:
    content = tally.text if tally.text or not tally.calls else None
    message = ChatMessage(role="assistant", content=content, refusal=None)
    if tally.reasoning:
        message.reasoning_content = tally.reasoning
    if tally.calls:
        message.tool_calls = [
            CallOfTool(
                id=call.id or "",
                type="function",
                function=CalledFunction(name=call.name or "", arguments=call.arguments),
            )
            for call in tally.calls
        ]
    return message


def _delta(piece: Piece) -> Delta:
    delta = Delta(content=piece.text) if piece.text else Delta()
    if piece.reasoning:
        delta.reasoning_content = piece.reasoning
    if piece.calls:
        delta.tool_calls = [_call_delta(call) for call in piece.calls]
    return delta


def _call_delta(call: ShownCall) -> CallDelta:
    if call.id is None:
        return CallDelta(index=call.index, function=FunctionDelta(arguments=call.arguments))
    function = FunctionDelta(name=call.name, arguments=call.arguments)
    return CallDelta(index=call.index, id=call.id, type="function", function=function)


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
    num_tokens = num_cached = 0

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
            num_cached += piece.cached_tokens
            told = piece.text or piece.reasoning or piece.calls
            if told or piece.finish_reason or piece.shown or request.return_token_ids:
                choice = ChatChunkChoice(
                    index=piece.choice,
                    delta=_delta(piece),
                    logprobs=chat_logprobs([piece.shown]) if piece.shown else None,
                    finish_reason=piece.finish_reason,
                )
                if request.return_token_ids:
                    choice.token_ids = [piece.token_id]
                yield Chunk(chunk([choice]).json_text(), piece.choice)
    if request.include_usage:
        yield Chunk(chunk([], Usage.of(generations, num_tokens, num_cached)).json_text())

"""The kinds of requests for text: how each is read, and how its answer is written."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from gateway import chat, completions
from gateway.answers import Chunk, Piece, answers
from gateway.model import ServedModel
from gateway.requests import Generation, TokenSource
from gateway.responses import Response
from gateway.schemas import ChatRequest, CompletionRequest, GenerationRequest
from gateway.tools.schemas import ToolUse

RequestT = TypeVar("RequestT", bound=GenerationRequest)
TokenIds = tuple[int, ...]
Pieces = AsyncGenerator[Piece, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form(Generic[RequestT]):
    """How one kind of request is read and its answer written.

    Attributes:
        id_prefix: Of the answer's id.
        prompt_param: The field that holds the prompt.
        default_max_tokens: Of an answer; None: all that the context leaves.
        encode: Request to the token ids of each prompt; raises `ApiError`.
        collect: Pieces to the whole answer.
        stream: Pieces to the chunks of a stream.
        prefixes: Text before that of each choice; empty: none.
        tools: How tools are used; None: not at all. Raises `ApiError`.
    """

    request_type: type[RequestT]
    id_prefix: str
    prompt_param: str
    default_max_tokens: int | None
    encode: Callable[[RequestT, ServedModel], list[TokenIds]]
    collect: Callable[
        [RequestT, dict[str, Any], Sequence[Generation], Pieces], Coroutine[Any, Any, Response]
    ]
    stream: Callable[
        [RequestT, dict[str, Any], Sequence[Generation], Pieces], AsyncGenerator[Chunk, None]
    ]
    prefixes: Callable[[RequestT, ServedModel], Sequence[str]] = lambda request, model: ()
    tools: Callable[[RequestT, ServedModel], ToolUse | None] = lambda request, model: None

    @property
    def operation(self) -> str:
        """What OpenTelemetry's GenAI conventions call it."""
        return "text_completion" if self.request_type is CompletionRequest else "chat"

    def pieces(
        self,
        source: TokenSource,
        request: RequestT,
        model: ServedModel,
        generations: Sequence[Generation],
    ) -> Pieces:
        """Return what an answer's choices bring, as it comes."""
        prefixes, tools = self.prefixes(request, model), self.tools(request, model)
        return answers(source, model.tokenizer, generations, request.stop, prefixes, tools)

    def has_id(self, answer_id: str) -> bool:
        """Whether an answer of this form may be called so."""
        return re.fullmatch(rf"{self.id_prefix}-[0-9a-f]{{24}}", answer_id) is not None


CHAT: Final = Form(
    request_type=ChatRequest,
    id_prefix="chatcmpl",
    prompt_param="messages",
    default_max_tokens=None,
    encode=chat.encode_prompts,
    collect=chat.collect,
    stream=chat.stream,
    tools=chat.tools,
)
COMPLETION: Final = Form(
    request_type=CompletionRequest,
    id_prefix="cmpl",
    prompt_param="prompt",
    default_max_tokens=completions.DEFAULT_MAX_TOKENS,
    encode=completions.encode_prompts,
    collect=completions.collect,
    stream=completions.stream,
    prefixes=completions.prefixes,
)

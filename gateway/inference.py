"""What chat and text completions have in common: from the HTTP request to its answer."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from gateway import chat, completions
from gateway.answers import Piece, answers
from gateway.connection import EventStream, read_body, run_unless_interrupted
from gateway.errors import ApiError, from_engine, not_ready
from gateway.model import ModelSlot, ServedModel
from gateway.parameters import Limits, plan_generations
from gateway.requests import Engine, EngineError, Generation
from gateway.responses import Response as Body
from gateway.schemas import ChatRequest, CompletionRequest, GenerationRequest, parse_request
from gateway.settings import Settings

RequestT = TypeVar("RequestT", bound=GenerationRequest)
TokenIds = tuple[int, ...]
Pieces = AsyncGenerator[Piece, None]

# Longer texts are tokenised in a thread, so that other streams go on meanwhile.
_LONG_BODY_BYTES: Final = 16 * 1024
_RETRY_SECONDS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Form(Generic[RequestT]):
    """How one route reads a request and writes an answer.

    Attributes:
        id_prefix: Of the answer's id.
        prompt_param: The field that holds the prompt.
        default_max_tokens: Of an answer; None: all that the context leaves.
        encode: Request to the token ids of each prompt; raises `ApiError`.
        collect: Pieces to the whole answer.
        stream: Pieces to the JSON of each event.
    """

    request_type: type[RequestT]
    id_prefix: str
    prompt_param: str
    default_max_tokens: int | None
    encode: Callable[[RequestT, ServedModel], list[TokenIds]]
    collect: Callable[
        [RequestT, dict[str, Any], Sequence[Generation], Pieces], Coroutine[Any, Any, Body]
    ]
    stream: Callable[
        [RequestT, dict[str, Any], Sequence[Generation], Pieces], AsyncGenerator[str, None]
    ]


CHAT: Final = Form(
    request_type=ChatRequest,
    id_prefix="chatcmpl",
    prompt_param="messages",
    default_max_tokens=None,
    encode=chat.encode_prompts,
    collect=chat.collect,
    stream=chat.stream,
)
COMPLETION: Final = Form(
    request_type=CompletionRequest,
    id_prefix="cmpl",
    prompt_param="prompt",
    default_max_tokens=completions.DEFAULT_MAX_TOKENS,
    encode=completions.encode_prompts,
    collect=completions.collect,
    stream=completions.stream,
)


class Inference:
    """Answers generation requests.

    Args:
        engine: Generates the tokens.
        model: Filled when the model is prepared.
        settings: Limits.
        stopping: Set when the gateway is about to stop.
    """

    def __init__(
        self, engine: Engine, model: ModelSlot, settings: Settings, stopping: asyncio.Event
    ) -> None:
        self._engine = engine
        self._model = model
        self._settings = settings
        self._stopping = stopping

    async def answer(self, http: Request, form: Form[RequestT]) -> Response:
        """Return the answer to a request, whole or as a stream.

        Raises:
            ApiError: The request is wrong, or it failed before its first token.
        """
        body = await read_body(http, self._settings.max_body_bytes)
        request = parse_request(body, form.request_type)
        model = self._served(request)
        if len(body) > _LONG_BODY_BYTES:
            prompts = await asyncio.to_thread(form.encode, request, model)
        else:
            prompts = form.encode(request, model)
        answer_id = f"{form.id_prefix}-{secrets.token_hex(12)}"
        generations = plan_generations(
            request,
            prompts,
            model,
            self._limits(model),
            answer_id=answer_id,
            prompt_param=form.prompt_param,
            default_max_tokens=form.default_max_tokens,
            drawn_seed=secrets.randbits(63),
        )
        head = {
            "id": answer_id,
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        pieces = answers(self._engine, model.tokenizer, generations, request.stop)
        if request.stream:
            return EventStream(
                form.stream(request, head, generations, pieces),
                describe_error=lambda error: _describe(error, form.prompt_param),
                stopping=self._stopping,
                keep_alive_seconds=self._settings.keep_alive_seconds,
            )
        whole = form.collect(request, head, generations, pieces)
        try:
            found = await run_unless_interrupted(http.receive, self._stopping, whole)
        except EngineError as error:
            raise from_engine(error, form.prompt_param) from error
        return Response(found.json_text(), media_type="application/json")

    def _served(self, request: GenerationRequest) -> ServedModel:
        model = self._model.served
        if model is None:
            raise not_ready(f"the gateway is {self._model.stage}", _RETRY_SECONDS)
        if request.model is not None and request.model != model.name:
            raise unknown_model(request.model, model.name)
        return model

    def _limits(self, model: ServedModel) -> Limits:
        largest = self._engine.largest_request_tokens()
        context = model.context_tokens
        return Limits(
            context_tokens=context if largest is None else min(context, largest),
            max_choices=self._settings.max_choices,
            deadline_seconds=self._settings.deadline_seconds,
        )


def unknown_model(asked: str, served: str) -> ApiError:
    """Return the 404 about a model that is not served."""
    return ApiError(
        404,
        f"the model {asked!r} is not served here; this gateway serves {served!r}",
        param="model",
        code="model_not_found",
    )


def _describe(error: Exception, prompt_param: str) -> ApiError | None:
    return from_engine(error, prompt_param) if isinstance(error, EngineError) else None

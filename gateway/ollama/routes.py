"""Ollama's routes, for tools that speak nothing else: ``/api/chat``, ``/api/generate``, ..."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel

from gateway.errors import no_embeddings, told_of
from gateway.forms import Form
from gateway.framing import JSON_LINES
from gateway.ollama.answers import (
    OLLAMA_CHAT,
    OLLAMA_GENERATE,
    OLLAMA_RAW,
    OllamaAnswer,
    framing,
    nothing_asked,
)
from gateway.ollama.models import show_body, tag_body
from gateway.ollama.requests import NAMES, OllamaChat, OllamaGenerate, OllamaShow
from gateway.openapi import GENERATION_ERRORS, body_of, errors, streamed
from gateway.serving import Serving

PREFIX: Final = "/api/"
OLLAMA_VERSION: Final = "0.12.0"
"""Whose interface this is, nearly: tools look at the number to see what they may ask for."""


class OllamaError(BaseModel):
    """What went wrong, in words."""

    error: str


class OllamaStatus(BaseModel):
    """How far something is, in words."""

    status: str


def add_ollama_routes(app: FastAPI, serving: Serving) -> None:
    """Add Ollama's routes."""
    answers = errors(*GENERATION_ERRORS, model=OllamaError) | streamed(JSON_LINES)

    async def answer(
        http: Request, form: Form[Any], content: dict[str, Any], num_bytes: int, *, is_chat: bool
    ) -> Response:
        with told_of(NAMES):
            found = await serving.inference.begin(content, form, num_bytes)
        return await serving.deliver(http, found, framing(content["model"], is_chat=is_chat))

    def loaded(asked: str, *, is_chat: bool) -> Response:
        name = serving.inference.require(asked).name
        text = nothing_asked(name, is_chat=is_chat).json_text()
        return Response(text, media_type="application/json")

    @app.post(
        "/api/chat",
        response_model=OllamaAnswer,
        openapi_extra=body_of(OllamaChat),
        responses=answers,
    )
    async def ollama_chat(http: Request) -> Response:
        request, num_bytes = await serving.read_as(http, OllamaChat)
        content = request.ours()
        if not request.messages:
            return loaded(content["model"], is_chat=True)
        return await answer(http, OLLAMA_CHAT, content, num_bytes, is_chat=True)

    @app.post(
        "/api/generate",
        response_model=OllamaAnswer,
        openapi_extra=body_of(OllamaGenerate),
        responses=answers,
    )
    async def ollama_generate(http: Request) -> Response:
        request, num_bytes = await serving.read_as(http, OllamaGenerate)
        if not request.prompt:
            return loaded(request.common()["model"], is_chat=False)
        form, content = (
            (OLLAMA_RAW, request.as_text()) if request.raw else (OLLAMA_GENERATE, request.as_chat())
        )
        return await answer(http, form, content, num_bytes, is_chat=False)

    @app.get("/api/tags")
    @app.get("/api/ps")
    async def ollama_tags() -> dict[str, Any]:
        """Return the models that are served."""
        return {"models": [tag_body(model) for model in serving.inference.named()]}

    @app.post(
        "/api/show",
        openapi_extra=body_of(OllamaShow),
        responses=errors(400, 404, 413, 503, model=OllamaError),
    )
    async def ollama_show(http: Request) -> dict[str, Any]:
        request, _ = await serving.read_as(http, OllamaShow)
        return show_body(serving.inference.require(request.asked))

    @app.post(
        "/api/pull",
        openapi_extra=body_of(OllamaShow),
        responses=errors(400, 404, 413, 503, model=OllamaError),
    )
    async def ollama_pull(http: Request) -> OllamaStatus:
        """Answer tools that fetch a model before they use it: a served one is there."""
        request, _ = await serving.read_as(http, OllamaShow)
        serving.inference.require(request.asked)
        return OllamaStatus(status="success")

    @app.post("/api/embed", status_code=400, responses=errors(400, model=OllamaError))
    @app.post("/api/embeddings", status_code=400, responses=errors(400, model=OllamaError))
    async def ollama_embeddings() -> Any:
        """Refuse: the models served here generate text."""
        raise no_embeddings()

    @app.get("/api/version")
    async def ollama_version() -> dict[str, str]:
        return {"version": OLLAMA_VERSION}

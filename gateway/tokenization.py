"""``POST /tokenize`` and ``POST /detokenize``: texts to token ids and back, as in vLLM."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field

from gateway.bodies import Body
from gateway.chat import render
from gateway.errors import invalid_value, no_embeddings
from gateway.messages import Message
from gateway.model import ServedModel
from gateway.openapi import body_of, errors
from gateway.serving import Serving


class TokenizeRequest(Body):
    """A text, or the messages of a chat.

    Attributes:
        add_special_tokens: Whether the tokenizer adds its own; default for a text, while the
            template of a chat writes them itself.
        return_token_strs: Whether the answer says what each token stands for.
    """

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    """Token ids."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


class TokenizeResponse(BaseModel):
    """Token ids, their number, and how many a prompt and its answer may have together."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeResponse(BaseModel):
    """A text."""

    prompt: str


def add_tokenization_routes(app: FastAPI, serving: Serving) -> None:
    """Add both routes."""

    @app.post(
        "/tokenize", openapi_extra=body_of(TokenizeRequest), responses=errors(400, 404, 413, 503)
    )
    async def tokenize(http: Request) -> TokenizeResponse:
        """Return the token ids of a text or of a chat."""
        request, _ = await serving.read_as(http, TokenizeRequest)
        model = serving.inference.require(request.model)
        return await asyncio.to_thread(_tokenize, request, model)

    @app.post(
        "/detokenize",
        openapi_extra=body_of(DetokenizeRequest),
        responses=errors(400, 404, 413, 503),
    )
    async def detokenize(http: Request) -> DetokenizeResponse:
        """Return the text of token ids, special ones included."""
        request, _ = await serving.read_as(http, DetokenizeRequest)
        model = serving.inference.require(request.model)
        outside = [one for one in request.tokens if one >= model.config.vocab_size]
        if outside:
            raise invalid_value(
                "tokens", f"token id {outside[0]} is not in 0..{model.config.vocab_size - 1}"
            )
        text = await asyncio.to_thread(model.tokenizer.decode, request.tokens, keep_special=True)
        return DetokenizeResponse(prompt=text)

    @app.post("/v1/embeddings", status_code=400, responses=errors(400))
    async def embeddings(http: Request) -> Any:
        """Refuse: nodes give out tokens, not hidden states."""
        raise no_embeddings()


def _tokenize(request: TokenizeRequest, model: ServedModel) -> TokenizeResponse:
    if (request.prompt is None) == (request.messages is None):
        raise invalid_value("prompt", "send prompt (a text) or messages (a chat), one of both")
    if request.messages is not None:
        text = render(request.messages, model)
        ids = model.tokenizer.encode(text, add_special_tokens=bool(request.add_special_tokens))
    else:
        ids = model.tokenizer.encode(
            request.prompt or "", add_special_tokens=request.add_special_tokens is not False
        )
    tokens = model.tokenizer
    return TokenizeResponse(
        count=len(ids),
        max_model_len=model.context_tokens,
        tokens=list(ids),
        token_strs=(
            [tokens.token_bytes(one).decode("utf-8", "replace") for one in ids]
            if request.return_token_strs
            else None
        ),
    )

"""``/v1/responses``: text and calls as items, streamed, or in the background."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import Response

from gateway.errors import told_of
from gateway.items.answers import BACKGROUND, RESPONSES, TYPED_EVENTS, ResponseBody
from gateway.items.background import BackgroundResponses
from gateway.items.requests import ResponsesRequest
from gateway.openapi import GENERATION_ERRORS, body_of, errors, streamed
from gateway.serving import Serving


def add_responses_routes(app: FastAPI, serving: Serving) -> None:
    """Add ``POST /v1/responses``, and what fetches and cancels one."""
    background = BackgroundResponses(serving.inference)
    refusals = errors(*GENERATION_ERRORS)

    @app.post(
        "/v1/responses",
        response_model=ResponseBody,
        openapi_extra=body_of(ResponsesRequest),
        responses=refusals | streamed(TYPED_EVENTS.media_type),
    )
    async def respond(http: Request) -> Response:
        request, num_bytes = await serving.read_as(http, ResponsesRequest)
        form = BACKGROUND if request.background else RESPONSES
        content = request.as_chat()
        with told_of(request.names):
            found = await serving.inference.begin(content, form, num_bytes)
        if request.background:
            return _json(await background.start(found))
        return await serving.deliver(http, found, TYPED_EVENTS)

    @app.get("/v1/responses/{response_id}", response_model=ResponseBody, responses=refusals)
    async def fetch_response(response_id: str) -> Response:
        """Return a response of the last hour, as far as it is."""
        return _json(await background.fetch(response_id))

    @app.post("/v1/responses/{response_id}/cancel", response_model=ResponseBody, responses=refusals)
    async def cancel_response(response_id: str) -> Response:
        """End a response in the background."""
        return _json(await background.cancel(response_id))


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")

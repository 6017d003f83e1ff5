"""The HTTP API as an ASGI application: routes, error objects, request ids.

It is served from the start: while the model is prepared or no plan is active, ``/readyz``
says why and how far that is, and requests for text get 503.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.exposition import Exposition
from broker.joining import JoinFolder
from broker.metrics import Sample
from broker.traffic import Traffic
from gateway.access.caller import current_visit
from gateway.access.door import Door
from gateway.access.joining import Joining, add_join_route
from gateway.access.removal import Removal, add_removal_route
from gateway.access.routes import add_access_routes
from gateway.access.store import KeyStore
from gateway.administration import add_administration_routes
from gateway.dashboard import site
from gateway.dashboard.history import History
from gateway.dashboard.sources import Sources
from gateway.errors import ApiError, internal_error, invalid_value
from gateway.forms import CHAT, COMPLETION
from gateway.framing import SERVER_SENT_EVENTS
from gateway.inference import Inference
from gateway.items.routes import add_responses_routes
from gateway.meter import Meter
from gateway.metrics import TABLE
from gateway.model_routes import add_model_routes
from gateway.models import Models
from gateway.ollama.routes import PREFIX, OllamaError, add_ollama_routes
from gateway.openapi import GENERATION_ERRORS, body_of, document, errors, streamed
from gateway.prompts import Prompts
from gateway.requests import Engine
from gateway.responses import ChatCompletion, Completion, ModelCard, ModelList, model_card
from gateway.serving import Serving
from gateway.settings import Settings
from gateway.tokenization import add_tokenization_routes
from gateway.tracing.tracer import Tracer
from gateway.weights import UrlSigner, WrongSignatureError
from gateway.whatif_routes import add_what_if_route


def create_app(
    engine: Engine,
    models: Models,
    settings: Settings,
    signer: UrlSigner,
    stopping: asyncio.Event,
    prompts: Prompts | None = None,
    *,
    keys: KeyStore,
    meter: Meter,
    tracer: Tracer | None = None,
    history: History | None = None,
) -> FastAPI:
    """Return the ASGI application.

    Args:
        engine: The bus side.
        models: That a person gave to this gateway.
        settings: Limits.
        signer: Checks the URLs of weights.
        stopping: Set when the process is about to stop; ends what is open with an error.
        prompts: The same over MQTT, for what ``/readyz`` says of it.
        keys: Who may do what.
        meter: Counts what callers use; the one of ``prompts``, too.
        tracer: Gives requests a trace; the one of ``prompts``, too.
        history: What devices said lately, for the dashboard.
    """
    app = FastAPI(title="E2LLM gateway", docs_url=None, redoc_url=None)
    app.add_middleware(Door, keys=keys, own_url=settings.public_url, refuse=error_response)
    # Added last, it is the first to see a request: what the door refuses has an id as well.
    app.add_middleware(RequestIds)
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_wrong_parameter)
    app.add_exception_handler(Exception, _answer_bug)
    serving = Serving(Inference(engine, models, settings, meter, tracer), settings, stopping)
    _add_inference_routes(app, serving)
    _add_model_routes(app, serving.inference)
    add_tokenization_routes(app, serving)
    add_responses_routes(app, serving)
    add_ollama_routes(app, serving)
    _add_state_routes(app, engine, models, prompts)
    _add_metrics_route(app, engine, prompts)
    add_administration_routes(app, engine)
    add_what_if_route(app, engine)
    add_model_routes(app, engine, models)
    add_access_routes(app, keys, meter, engine)
    joins = None if settings.joins is None else JoinFolder(settings.joins)
    joining = Joining(settings, joins)
    add_join_route(app, joining, engine)
    add_removal_route(app, Removal(engine, keys, joining))
    _add_weights_route(app, models, signer)
    sources = Sources(
        engine, serving.inference, keys, settings, stopping, history or History(), meter
    )
    app.mount(site.PATH, site.Dashboard(sources))
    document(app)
    return app


def _add_inference_routes(app: FastAPI, serving: Serving) -> None:
    answers = errors(*GENERATION_ERRORS) | streamed(SERVER_SENT_EVENTS.media_type)

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        openapi_extra=body_of(CHAT.request_type),
        responses=answers,
    )
    async def chat_completions(http: Request) -> Response:
        return await serving.answer(http, CHAT)

    @app.post(
        "/v1/completions",
        response_model=Completion,
        openapi_extra=body_of(COMPLETION.request_type),
        responses=answers,
    )
    async def text_completions(http: Request) -> Response:
        return await serving.answer(http, COMPLETION)

    @app.get("/fog/requests/{answer_id}", response_model=None, responses=answers)
    async def resume(http: Request, answer_id: str, stream: bool | None = None) -> Response:
        """Answer again what was asked before, or go on with it behind ``Last-Event-ID``."""
        last = http.headers.get("last-event-id")
        found = await serving.inference.resume(answer_id, last, stream=stream)
        return await serving.deliver(http, found)


def _add_model_routes(app: FastAPI, inference: Inference) -> None:
    @app.get("/v1/models")
    async def models() -> ModelList:
        """Return the models that requests may name, first the one for those that name none."""
        return ModelList(object="list", data=[model_card(each) for each in inference.named()])

    @app.get("/v1/models/{name:path}", responses=errors(404, 503))
    async def one_model(name: str) -> ModelCard:
        return model_card(inference.require(name))


def _add_state_routes(
    app: FastAPI, engine: Engine, models: Models, prompts: Prompts | None
) -> None:
    @app.get("/", response_model=None)
    async def links(http: Request) -> dict[str, Any] | Response:
        """Lead a browser to the dashboard, and tell programs what there is."""
        if "text/html" in http.headers.get("accept", ""):
            # Relative, so that it is right behind a proxy that adds a prefix.
            return RedirectResponse(f".{site.PATH}/") if site.is_installed() else site.remedy()
        paths = [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/responses",
            "/v1/models",
            "/tokenize",
            "/detokenize",
            "/api/chat",
            "/api/generate",
            "/api/tags",
            "/fog/plan",
            "/fog/plans",
            "/fog/devices",
            "/fog/requests",
            "/fog/models",
            "/fog/requests/{id}",
            "/fog/what-if",
            "/fog/keys",
            "/healthz",
            "/metrics",
            "/readyz",
            "/openapi.json",
        ]
        return {"service": "e2llm gateway", "links": paths}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"description": "Not ready; says why"}})
    async def readyz() -> JSONResponse:
        readiness = models.readiness(engine)
        content = asdict(readiness)
        if prompts is not None:
            content["details"]["prompts"] = prompts.details()
        if not current_visit().caller.is_admin:
            # Names of devices are nobody's business; that it is ready, and why not, is.
            content["details"] = {}
        return JSONResponse(
            content,
            status_code=200 if readiness.ready else 503,
            headers={} if readiness.ready else {"Retry-After": "1"},
        )

    @app.get("/fog/plan")
    async def fog_plan() -> JSONResponse:
        return JSONResponse(engine.fog_plan())

    @app.get("/fog/plans")
    async def fog_plans() -> JSONResponse:
        return JSONResponse(engine.plan_history())

    @app.get("/fog/devices")
    async def fog_devices() -> JSONResponse:
        return JSONResponse(engine.devices())


def _add_metrics_route(app: FastAPI, engine: Engine, prompts: Prompts | None) -> None:
    def samples() -> Iterator[Sample]:
        return engine.samples(Traffic() if prompts is None else prompts.traffic)

    exposition = Exposition(TABLE, samples)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(http: Request) -> Response:
        """Return what Prometheus reads."""
        body, media_type = exposition.text(http.headers.get("accept", ""))
        return Response(body, headers={"content-type": media_type})


def _add_weights_route(app: FastAPI, models: Models, signer: UrlSigner) -> None:
    @app.head("/weights/{revision}/{file}", include_in_schema=False)
    @app.get("/weights/{revision}/{file}", responses=errors(403, 404))
    async def weights(revision: str, file: str, http: Request) -> FileResponse:
        """Answer one file of the checkpoint, also in ranges, to who has a signed URL.

        Or an admin's key; that nobody needs one elsewhere does not open this.
        """
        caller = current_visit().caller
        if not (caller.is_admin and caller.id):
            try:
                signer.check(revision, file, http.query_params, time.time())
            except WrongSignatureError as error:
                raise ApiError(403, str(error), code="wrong_signature") from error
        # Only what the manifest names: the folder may hold other things.
        found = (each for each in models.of_revision(revision) if file in each.manifest.files)
        model = next(found, None)
        if model is None:
            raise ApiError(404, f"no file {file} in revision {revision}", code="not_found")
        return FileResponse(model.path_of(file), media_type="application/octet-stream")


class RequestIds:
    """Gives each answer an ``x-request-id``, as OpenAI does; ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        header = (b"x-request-id", f"req_{secrets.token_hex(12)}".encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        await self._app(scope, receive, send_with_id)


async def _answer_api_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(http.url.path, error)


def error_response(path: str, error: ApiError) -> Response:
    """Return an error in the form that clients of a path know."""
    body = error.body()
    if path.startswith(PREFIX):
        body = OllamaError(error=error.message).model_dump()
    return JSONResponse(body, status_code=error.status, headers=error.headers)


async def _answer_wrong_parameter(http: Request, error: Exception) -> Response:
    """Answer a wrong parameter in the path or in the query."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()[0]
    name = str(found["loc"][-1])
    return await _answer_api_error(http, invalid_value(name, f"{name}: {found['msg']}"))


async def _answer_http_error(http: Request, error: Exception) -> Response:
    """Answer what the framework refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase.lower()
    message = f"{phrase}: {http.method} {http.url.path}"
    code = phrase.replace(" ", "_")
    answer = ApiError(error.status_code, message, code=code, headers=error.headers)
    return await _answer_api_error(http, answer)


async def _answer_bug(http: Request, error: Exception) -> Response:
    """Answer an error of ours; the server logs its traceback."""
    return await _answer_api_error(http, internal_error())

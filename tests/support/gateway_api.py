"""The gateway's HTTP side for tests: in the process, or on a port, over a fake engine."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI

from broker.events import Logprobs
from gateway.access.store import KeyFile, KeyStore
from gateway.app import create_app
from gateway.dashboard.history import History
from gateway.keeper import Keeper
from gateway.meter import Meter
from gateway.model import ModelRefusedError, ModelSlot, ServedModel
from gateway.models import Model, Models
from gateway.preparation import read_model
from gateway.prompts import Prompts
from gateway.requests import Generation, Written
from gateway.server import HttpServer, listen
from gateway.settings import Settings
from gateway.tracing.tracer import Tracer
from gateway.weights import UrlSigner
from tests.support.fake_engine import FakeEngine

BASE_URL = "http://gateway.test"
MODEL = "tiny"


def settings_for(folder: Path, state: Path, **changes: Any) -> Settings:
    values = {"broker": "mqtt://gateway-1:secret@localhost", "model": str(folder), "state": state}
    return Settings(**{**values, "model_name": MODEL, **changes})


class Api:
    """An app with all its parts at hand."""

    def __init__(
        self,
        engine: FakeEngine,
        settings: Settings,
        *,
        prepared: bool = True,
        tracer: Tracer | None = None,
    ) -> None:
        self.engine = engine
        self.tracer = tracer
        self.settings = settings
        self.models = Models(settings)
        if prepared:
            self.slot.served = read_model(settings, self.slot, "test")
        self.signer = UrlSigner(b"k" * 32, BASE_URL)
        self.stopping = asyncio.Event()
        self.keys = KeyStore(KeyFile(settings.state), admin_key=settings.admin_key)
        self.meter = Meter()
        self.history = History()
        self.app: FastAPI = self.make_app()

    def make_app(self, prompts: Prompts | None = None) -> FastAPI:
        return create_app(
            self.engine,
            self.models,
            self.settings,
            self.signer,
            self.stopping,
            prompts,
            keys=self.keys,
            history=self.history,
            meter=self.meter,
            tracer=self.tracer,
        )

    @property
    def slot(self) -> ModelSlot:
        """Of the model in the settings."""
        return self.models.first.slot

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx2.AsyncClient]:
        transport = httpx2.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url=BASE_URL) as client:
            yield client

    def write_down(
        self,
        generation: Generation,
        tokens: Sequence[int],
        status: str = "running",
        logprobs: Iterable[Logprobs] = (),
    ) -> None:
        """Write into the journal what a gateway knew of a choice when it was killed."""
        assert self.slot.served is not None
        manifest = self.slot.served.manifest
        fields = {
            "body": json.dumps(generation.body),
            "prompt_ids": json.dumps(generation.prompt_ids),
            "seed": str(generation.sampling.seed),
            "parameters": json.dumps({"max_tokens": generation.max_tokens}),
            "model": manifest.name,
            "revision": manifest.revision,
            "weights": manifest.weights,
            "status": status,
            "created": str(generation.created),
            "caller": generation.caller,
        }
        written = Written(fields, tuple(tokens), tuple(logprobs))
        self.engine.journal[generation.request_id] = written

    async def post(self, path: str, body: Mapping[str, Any] | bytes) -> httpx2.Response:
        async with self.client() as client:
            if isinstance(body, bytes):
                return await client.post(path, content=body)
            return await client.post(path, json=body)

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        async with self.client() as client:
            return await client.get(path, headers=headers)

    @asynccontextmanager
    async def kept(self, *refuse: str) -> AsyncIterator[asyncio.Task[None]]:
        """Prepare and publish models while the block lasts; those named are refused."""

        async def prepare(model: Model) -> ServedModel:
            if model.name in refuse:
                raise ModelRefusedError(f"{model.name} is damaged")
            model.slot.served = read_model(model.settings, model.slot, "test")
            return model.slot.served

        keeper = Keeper(self.models, self.engine, self.signer, prepare, 3600)
        task = asyncio.create_task(keeper.run())
        try:
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, ModelRefusedError):
                await task

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Serve on a free port; give the base URL."""
        listener = listen("127.0.0.1", 0)
        server = HttpServer(self.app)
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task

"""The HTTP routes by which a person adds, chooses and removes models while the fog runs.

Where a gateway has API keys, they are for admins (`gateway.access.door`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from gateway.bodies import Body, check_body, parse_object
from gateway.connection import read_body
from gateway.errors import ApiError, invalid_value
from gateway.hub import source_problem
from gateway.models import Model, ModelConflictError, Models, UnknownModelError
from gateway.openapi import body_of, errors
from gateway.requests import Engine

_MAX_BODY_BYTES = 4096


class AddModel(Body):
    """A model to prepare: a folder on the gateway's machine, or an id on the hub."""

    source: str
    name: str | None = None
    weights: str | None = None


class UseModels(Body):
    """The names of the models that the fog is to serve."""

    models: list[str]


def add_model_routes(app: FastAPI, engine: Engine, models: Models) -> None:
    """Add the routes below ``/fog/models``."""

    @app.get("/fog/models")
    async def listing() -> JSONResponse:
        """Return each model with its state and progress."""
        return JSONResponse([model_body(model, engine) for model in models])

    @app.post(
        "/fog/models",
        status_code=202,
        openapi_extra=body_of(AddModel),
        responses=errors(400, 409, 413),
    )
    async def add(http: Request) -> JSONResponse:
        """Begin to prepare a model. Devices measure themselves for it; nothing loads it yet."""
        asked = await _read(http, AddModel)
        if problem := source_problem(asked.source):
            raise invalid_value("source", f"source {problem}")
        with _refusals():
            added = models.add(asked.source, asked.name, asked.weights)
        return JSONResponse(model_body(added, engine), status_code=202)

    @app.put(
        "/fog/models/use", openapi_extra=body_of(UseModels), responses=errors(400, 404, 409, 413)
    )
    async def use(http: Request) -> JSONResponse:
        """Let the fog serve these models; the others leave when these serve."""
        asked = await _read(http, UseModels)
        if not asked.models:
            raise invalid_value("models", "models is empty; name at least one")
        with _refusals():
            models.use(asked.models)
        return JSONResponse([model_body(model, engine) for model in models])

    @app.delete("/fog/models/{name:path}", responses=errors(404, 409))
    async def remove(name: str) -> JSONResponse:
        """Forget a model that is not in use; its files stay."""
        with _refusals():
            models.remove(name, engine)
        return JSONResponse([model_body(model, engine) for model in models])


def model_body(model: Model, engine: Engine) -> dict[str, Any]:
    """Return what ``GET /fog/models`` says of one model."""
    served = model.served
    body: dict[str, Any] = {
        "name": model.name,
        "source": model.settings.model,
        "weights": model.settings.weights,
        "in_use": model.in_use,
        "revision": None,
        "num_bytes": None,
        "unfinished": 0,
    }
    if model.refused is not None:
        return {**body, "state": "refused", "detail": model.refused, "progress": None}
    if served is None:
        detail, progress = model.slot.stage, model.slot.progress
        return {**body, "state": "preparing", "detail": detail, "progress": progress}
    manifest = served.manifest
    return {
        **body,
        "revision": manifest.revision,
        "num_bytes": sum(info.num_bytes for info in manifest.tensors.values()),
        **engine.model_state(manifest),
    }


async def _read(http: Request, kind: type[Any]) -> Any:
    return check_body(parse_object(await read_body(http, _MAX_BODY_BYTES)), kind)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except UnknownModelError as error:
        raise ApiError(404, str(error), param="model", code="model_not_found") from error
    except ModelConflictError as error:
        raise ApiError(409, str(error), param="model", code="model_conflict") from error
    except ValueError as error:
        raise invalid_value("weights", str(error)) from error

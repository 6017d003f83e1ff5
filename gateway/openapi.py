"""What the OpenAPI document says beyond what FastAPI finds out: bodies and errors of routes."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel

from gateway.errors import CLIENT_CLOSED_REQUEST


class Fault(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    error: Fault


GENERATION_ERRORS: Final = (400, 404, 409, 413, 429, CLIENT_CLOSED_REQUEST, 500, 503, 504)
"""What a request for text may be answered with instead."""


def errors(*statuses: int, model: type[BaseModel] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """Return the error answers of a route, for FastAPI's ``responses``."""
    return {status: {"model": model, "description": _phrase(status)} for status in statuses}


def body_of(request_type: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a body that a route reads by hand, for ``openapi_extra``."""
    schema = {"application/json": {"schema": request_type.model_json_schema()}}
    return {"requestBody": {"required": True, "content": schema}}


def document(app: FastAPI) -> None:
    """Make the document of an app say 400 where FastAPI says 422: parameters are our errors."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        schema = made()
        for operations in schema["paths"].values():
            for operation in operations.values():
                if operation["responses"].pop("422", None) is not None:
                    operation["responses"].setdefault("400", {"description": _phrase(400)})
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _phrase(status: int) -> str:
    if status == CLIENT_CLOSED_REQUEST:
        return "The client has left"
    return HTTPStatus(status).phrase

"""What the OpenAPI document says beyond what FastAPI finds out: bodies and errors of routes."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel

from gateway.access.door import needed_scope
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


COMPONENT: Final = "#/components/schemas/{name}"
"""Where bodies find their parts: references lead from the root of the document."""

GENERATION_ERRORS: Final = (400, 404, 409, 413, 429, CLIENT_CLOSED_REQUEST, 500, 503, 504)
"""What a request for text may be answered with instead."""


def errors(*statuses: int, model: type[BaseModel] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """Return the error answers of a route, for FastAPI's ``responses``."""
    return {status: {"model": model, "description": _phrase(status)} for status in statuses}


def streamed(media_type: str) -> dict[int | str, dict[str, Any]]:
    """Return that a route may answer with a stream as well, for FastAPI's ``responses``."""
    # No schema: that of a stream would be one of each of its events.
    content: dict[str, Any] = {media_type: {}}
    return {200: {"description": "The answer, whole or as a stream", "content": content}}


def body_of(request_type: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a body that a route reads by hand, for ``openapi_extra``."""
    template = COMPONENT.format(name="{model}")
    schema = {"application/json": {"schema": request_type.model_json_schema(ref_template=template)}}
    return {"requestBody": {"required": True, "content": schema}}


def document(app: FastAPI) -> None:
    """Make the document of an app say what our door and our errors add to FastAPI's routes.

    400 where FastAPI says 422, since parameters are our errors; 401, 403 and the key in
    ``Authorization`` where a gateway with keys needs one.
    """
    made = app.openapi

    def openapi() -> dict[str, Any]:
        schema = made()
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                # References lead from the root of the document, not of a body.
                for content in operation.get("requestBody", {}).get("content", {}).values():
                    schema["components"]["schemas"] |= content["schema"].pop("$defs", {})
                responses = operation["responses"]
                if responses.pop("422", None) is not None:
                    responses.setdefault("400", {"description": _phrase(400)})
                if needed_scope(path) is not None:
                    # Or none: a gateway without keys asks nobody for one.
                    operation["security"] = [{"key": []}, {}]
                    for status in (401, 403):
                        responses.setdefault(str(status), {"description": _phrase(status)})
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _phrase(status: int) -> str:
    if status == CLIENT_CLOSED_REQUEST:
        return "The client has left"
    return HTTPStatus(status).phrase

"""``response_format``: the answer is text, JSON, or JSON of a schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NotRequired

from typing_extensions import TypedDict

from gateway.bodies import problem
from gateway.constraints import OBJECT, check_schema

PARAM: Final = "response_format"


class NamedSchema(TypedDict):
    """A JSON schema; it is enforced whether ``strict`` says so or not."""

    name: str
    schema: dict[str, Any]
    description: NotRequired[str | None]
    strict: NotRequired[bool | None]


class ResponseFormat(TypedDict):
    """What an answer is."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NotRequired[NamedSchema | None]


def check_format(value: Any) -> Any:
    """Return the format as it is, if it has what its type needs."""
    is_schema = isinstance(value, dict) and value.get("type") == "json_schema"
    if is_schema and not isinstance(value.get("json_schema"), dict):
        raise problem("json_schema is required where type is json_schema")
    return value


def is_constrained(wanted: ResponseFormat | None) -> bool:
    """Whether the answer may not be any text."""
    return wanted is not None and wanted["type"] != "text"


def format_schema(wanted: ResponseFormat) -> Mapping[str, Any]:
    """Return the schema of a constrained answer; `ApiError` 400 for one that cannot be enforced."""
    schema: Mapping[str, Any] = OBJECT
    named = wanted.get("json_schema")
    if wanted["type"] == "json_schema" and named is not None:
        schema = named["schema"]
        check_schema(schema, f"{PARAM}.json_schema.schema")
    return schema

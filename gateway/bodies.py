"""JSON bodies to checked values: strict types, and errors that name the field. Pure."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from gateway.errors import ApiError


class Body(BaseModel):
    """Base of what clients send. Strict: ``"1"`` is not a number, as with OpenAI."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, hide_input_in_errors=True)


BodyT = TypeVar("BodyT", bound=Body)


def problem(message: str) -> PydanticCustomError:
    """Return an error whose message goes to the client as it is, text without placeholders."""
    return PydanticCustomError("value", "{message}", {"message": message})


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; `ApiError` 400 if it is none."""
    try:
        content = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(content, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return content


def check_body(content: dict[str, Any], body_type: type[BodyT]) -> BodyT:
    """Return the value that a JSON object makes; `ApiError` 400 that names the field."""
    try:
        return body_type.model_validate(content)
    except ValidationError as error:
        raise _first_problem(error) from None


# Of pydantic's, those that speak of Python and not of JSON.
_SAID: Final = {"dict_type": "must be an object", "model_type": "must be an object"}


def _first_problem(error: ValidationError) -> ApiError:
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ""
    for part in found["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else part
    missing = found["type"] == "missing"
    said = _SAID.get(found["type"], found["msg"])
    return ApiError(
        400,
        f"{param} is required" if missing else f"{param}: {said}",
        param=param,
        code="missing_required_parameter" if missing else "invalid_value",
    )

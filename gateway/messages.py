"""The messages of a conversation: what a client may send, and what a chat template gets."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from gateway.bodies import Body, problem

# The newer name of a system message, which templates do not know.
_ROLES: Final = {"developer": "system"}


def _check_content(value: Any) -> Any:
    """Return the text of a message; parts are joined by line feeds."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise problem("must be a string or a list of text parts")
    texts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise problem(f"part {index} is not text; only parts of type 'text' are supported")
        if not isinstance(part.get("text"), str):
            raise problem(f"part {index} has no string 'text'")
        texts.append(part["text"])
    return "\n".join(texts)


def _check_arguments(value: Any) -> Any:
    """Return the arguments as they are: the text of a JSON object."""
    if not isinstance(value, str):
        raise problem("must be a string with a JSON object")
    try:
        found = json.loads(value or "{}")
    except ValueError:
        raise problem("is not JSON") from None
    if not isinstance(found, dict):
        raise problem("must be a string with a JSON object")
    return value


class FunctionCall(Body):
    """Which function is called, and with what: the text of a JSON object."""

    name: str
    arguments: Annotated[str, BeforeValidator(_check_arguments)] = "{}"


class ToolCall(Body):
    """One call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """Return it as templates expect it: arguments are an object, not its text."""
        call = {
            "type": "function",
            "function": {
                "name": self.function.name,
                "arguments": json.loads(self.function.arguments or "{}"),
            },
        }
        return call if self.id is None else {"id": self.id, **call}


class Message(Body):
    """One message; ``developer`` is the newer name of ``system``.

    An assistant's message has content, tool calls or both; every other one has content.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[ToolCall] | None = None
    content: Annotated[
        str | None,
        BeforeValidator(_check_content, json_schema_input_type=str | list[dict[str, str]] | None),
        Field(validate_default=True),
    ] = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None

    @field_validator("tool_calls")
    @classmethod
    def _check_caller(
        cls, value: list[ToolCall] | None, info: ValidationInfo
    ) -> list[ToolCall] | None:
        if value and info.data.get("role") != "assistant":
            raise problem("only an assistant's message has tool calls")
        return value

    @field_validator("content")
    @classmethod
    def _check_presence(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and not info.data.get("tool_calls"):
            raise problem("must be a string or a list of text parts")
        return value

    def for_template(self) -> dict[str, Any]:
        """Return it as chat templates expect it, without what was not given."""
        found: dict[str, Any] = {
            "role": _ROLES.get(self.role, self.role),
            "content": self.content or "",
        }
        if self.tool_calls:
            found["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.tool_call_id is not None:
            found["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            found["name"] = self.name
        if self.reasoning_content is not None:
            found["reasoning_content"] = self.reasoning_content
        return found

"""The tools of a request: what they are, and which the answer may or must call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from gateway.bodies import Body, problem
from gateway.errors import ApiError, invalid_value
from gateway.tools.calls import ToolFormat
from gateway.tools.forced import Callee

_NAME: Final = r"^[A-Za-z0-9_.-]{1,64}$"


class Function(Body):
    """A function that a model may call; ``parameters`` is a JSON schema."""

    name: Annotated[str, Field(pattern=_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """One tool."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """Return it as chat templates expect it."""
        return self.model_dump(exclude_none=True, exclude={"function": {"strict"}})


class FunctionName(Body):
    """Which function must be called."""

    name: str


class NamedChoice(Body):
    """``tool_choice`` of one function."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedChoice


def check_choice(value: Any) -> Any:
    """Return a choice, if it is one: errors of a union would name its members."""
    if value is None or value in ("none", "auto", "required"):
        return value
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise problem("must be none, auto, required, or a function by its name")
    return NamedChoice(type="function", function=FunctionName(name=function["name"]))


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How tools are used in one answer.

    Attributes:
        format: How the model writes calls.
        opening: How the answer must begin, so that it is a call; "" leaves it to the model.
        forced: The functions of which one must be called, each with the field of the request
            that describes its arguments.
        is_named: The request names the one.
    """

    format: ToolFormat
    opening: str = ""
    forced: tuple[tuple[str, Callee], ...] = ()
    is_named: bool = False


def tool_use(
    tools: Sequence[Tool] | None, choice: ToolChoice | None, known: ToolFormat | None, model: str
) -> ToolUse | None:
    """Return how the tools of a request are used, None where none may be called.

    Args:
        tools: Of the request.
        choice: Which the answer may or must call; None: any, if there are some.
        known: How the model writes calls; None: nobody knows.
        model: Its name, for errors.

    Raises:
        ApiError: 400 that names the field.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise invalid_value("tool_choice", "tool_choice asks for a call of no tool")
        return None
    if choice == "none":
        return None
    if known is None:
        raise ApiError(
            400,
            f"model {model} has a chat template that is not known to write calls of tools",
            param="tools",
            code="tools_not_supported",
        )
    if isinstance(choice, NamedChoice):
        name = choice.function.name
        if name not in {tool.function.name for tool in tools}:
            raise invalid_value("tool_choice", f"tool_choice names {name!r}, which is no tool")
        return ToolUse(known, known.opening(name), _callees(tools, name), is_named=True)
    if choice == "required":
        return ToolUse(known, known.opening(None), _callees(tools))
    return ToolUse(known)


def _callees(tools: Sequence[Tool], only: str | None = None) -> tuple[tuple[str, Callee], ...]:
    """Return the functions with where they stand; of several with one name the first counts."""
    found: dict[str, tuple[str, Callee]] = {}
    for index, tool in enumerate(tools):
        function = tool.function
        if only in (None, function.name):
            where = f"tools[{index}].function.parameters"
            found.setdefault(function.name, (where, Callee(function.name, function.parameters)))
    return tuple(found.values())

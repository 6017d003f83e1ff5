"""The tools of a request: what they are, and which the answer may or must call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from gateway.bodies import Body, problem
from gateway.errors import ApiError, invalid_value
from gateway.tools.calls import ToolFormat, ToolReader
from gateway.tools.forced import Callee
from gateway.tools.harmony import Harmony
from gateway.tools.optional import BeginningReader

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
        callees: The functions that may be called, each with the field of the request that
            describes its arguments; none: the answer has parts all the same, see `has_channels`.
        opening: How the answer must begin, so that it is a call; "" leaves it to the model.
        is_named: The request names the one that must be called.
        is_held: Whether calls are held to the schemas of the callees.
        is_beside_json: Where the answer is no call, it is JSON: calls are all of it, or none.
    """

    format: ToolFormat
    callees: tuple[tuple[str, Callee], ...]
    opening: str = ""
    is_named: bool = False
    is_held: bool = False
    is_beside_json: bool = False

    @property
    def has_channels(self) -> bool:
        """Whether answers are messages in channels, of which some are not shown."""
        return isinstance(self.format, Harmony)

    def reader(self) -> ToolReader:
        """Return what reads one answer."""
        reader = self.format.reader()
        if self.is_beside_json and not self.has_channels:
            return BeginningReader(reader, self.format.marker)
        return reader


def tool_use(
    tools: Sequence[Tool] | None,
    choice: ToolChoice | None,
    known: ToolFormat | None,
    model: str,
    *,
    is_json: bool = False,
) -> ToolUse | None:
    """Return how the tools of a request are used, None where all of an answer is text.

    Args:
        tools: Of the request.
        choice: Which the answer may or must call; None: any, if there are some.
        known: How the model writes calls; None: nobody knows.
        model: Its name, for errors.
        is_json: Whether the answer must be JSON where it calls nothing.

    Raises:
        ApiError: 400 that names the field.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise invalid_value(
                "tool_choice",
                "tool_choice asks for a call, but there are no tools: send some in tools",
            )
        return _no_calls(known)
    if choice == "none":
        return _no_calls(known)
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
        named = _callees(tools, lambda function: function.name == name)
        return ToolUse(known, named, known.opening(name), is_named=True, is_held=True)
    if choice == "required":
        return ToolUse(known, _callees(tools), known.opening(None), is_held=True)
    return ToolUse(
        known,
        _callees(tools, is_held=lambda function: bool(function.strict)),
        is_held=is_json or any(tool.function.strict for tool in tools),
        is_beside_json=is_json,
    )


def _no_calls(known: ToolFormat | None) -> ToolUse | None:
    return ToolUse(Harmony(takes_calls=False), ()) if isinstance(known, Harmony) else None


def _callees(
    tools: Sequence[Tool],
    is_callee: Callable[[Function], bool] = lambda _: True,
    is_held: Callable[[Function], bool] = lambda _: True,
) -> tuple[tuple[str, Callee], ...]:
    """Return the functions with where they stand; of several with one name the first counts.

    The arguments of those that are not held to their schema may be any object.
    """
    found: dict[str, tuple[str, Callee]] = {}
    for index, function in enumerate(tool.function for tool in tools):
        if is_callee(function):
            where = f"tools[{index}].function.parameters"
            schema = function.parameters if is_held(function) else None
            found.setdefault(function.name, (where, Callee(function.name, schema)))
    return tuple(found.values())

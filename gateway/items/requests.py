"""The body of ``POST /v1/responses``, and the chat that it makes."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, ConfigDict

from gateway.bodies import Body, problem
from gateway.errors import ApiError, invalid_value

# Fields that would change the answer: the values with which they do not.
_REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "previous_response_id": (),
    "prompt": (),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
# Field of the chat: field of this request.
_NAMES: Final = {
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
}
_TEXT_PARTS: Final = frozenset({"input_text", "output_text", "text"})


def _check_input(value: Any) -> Any:
    is_list = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    if not isinstance(value, str) and not is_list:
        raise problem("must be a string or a list of items, and not be empty")
    return value


class ResponsesRequest(Body):
    """What counts of a request; the rest is refused or ignored."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    input: Annotated[
        Any,
        BeforeValidator(_check_input, json_schema_input_type=str | list[dict[str, Any]]),
    ]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    stream: bool | None = None
    background: bool | None = None
    user: str | None = None

    def as_chat(self) -> dict[str, Any]:
        """Return the body of a chat completion; `ApiError` 400 that names the field."""
        for name, neutral in _REFUSED.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in neutral:
                raise ApiError(
                    400,
                    f"{name} is not supported; leave it out",
                    param=name,
                    code="unsupported_parameter",
                )
        if self.background and self.stream:
            raise invalid_value("stream", "a background response is no stream; fetch it later")
        fields = {
            "model": self.model,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "tools": None if self.tools is None else [_tool(tool) for tool in self.tools],
            "tool_choice": _choice(self.tool_choice),
            "response_format": _format(self.text),
            "stream": self.stream,
            "user": self.user,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        return given | {"messages": [message for _, message in self._conversation()]}

    @property
    def names(self) -> dict[str, str]:
        """The fields of the chat that are called otherwise here, for errors about them."""
        wheres = (where for where, _ in self._conversation())
        messages = {f"messages[{index}]": where for index, where in enumerate(wheres)}
        tools = {f"tools[{i}].function": f"tools[{i}]" for i in range(len(self.tools or ()))}
        return {**_NAMES, "messages": "input", **messages, **tools}

    def _conversation(self) -> list[tuple[str, dict[str, Any]]]:
        """Return each message with the field in which it begins."""
        found: list[tuple[str, dict[str, Any]]] = []
        if self.instructions is not None:
            found.append(("instructions", {"role": "system", "content": self.instructions}))
        if isinstance(self.input, str):
            return [*found, ("input", {"role": "user", "content": self.input})]
        for index, item in enumerate(self.input):
            where = f"input[{index}]"
            message = _message(item, where)
            last = found[-1][1] if found else {}
            if "tool_calls" in message and last.get("role") == "assistant":
                # Calls follow the words of one message, and each other.
                last.setdefault("tool_calls", []).extend(message["tool_calls"])
            else:
                found.append((where, message))
        return found


def _message(item: dict[str, Any], where: str) -> dict[str, Any]:
    match item.get("type", "message"):
        case "message":
            return {"role": item.get("role"), "content": _content(item.get("content"), where)}
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        case "function_call_output":
            output = _content(item.get("output"), where)
            return {"role": "tool", "content": output, "tool_call_id": item.get("call_id")}
        case other:
            raise invalid_value(where, f"{where} is of type {other!r}, which is not supported")


def _content(value: Any, where: str) -> Any:
    """Return the content of a message with parts of text as a chat has them."""
    if not isinstance(value, list):
        return value
    parts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS:
            raise invalid_value(where, f"{where} has a part that is no text: {kind!r}")
        parts.append({"type": "text", "text": part.get("text")})
    return parts


def _format(text: dict[str, Any] | None) -> Any:
    """Return the format of the text as a chat has it: a schema stands a level deeper there."""
    wanted = (text or {}).get("format")
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return wanted
    return {"type": "json_schema", "json_schema": {k: v for k, v in wanted.items() if k != "type"}}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as a chat has it: what it is stands a level deeper there."""
    return {"type": tool.get("type"), "function": {k: v for k, v in tool.items() if k != "type"}}


def _choice(choice: str | dict[str, Any] | None) -> Any:
    if isinstance(choice, dict):
        return {"type": choice.get("type"), "function": {"name": choice.get("name")}}
    return choice

"""Ollama's bodies, and the requests of ours that they make."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, ConfigDict, Field

from gateway.bodies import Body, problem
from gateway.errors import ApiError, invalid_value

# Option of Ollama: field of ours.
_OPTIONS: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
NAMES: Final = {
    **{ours: f"options.{theirs}" for theirs, ours in _OPTIONS.items()},
    "max_tokens": "options.num_predict",
    "response_format": "format",
    "response_format.json_schema.schema": "format",
}
"""Field of ours: what Ollama calls it, for errors about it."""
# Fields that would change the answer: the values with which they do not.
_REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "think": (False,),
    "images": ([],),
    "suffix": ("",),
    "template": ("",),
    "context": ([],),
    "logprobs": (False,),
}
_REFUSED_OPTIONS: Final[dict[str, tuple[Any, ...]]] = {"mirostat": (0,), "typical_p": (1, 1.0)}
_LATEST: Final = ":latest"


def _check_options(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise problem("must be an object")
    return value


def _check_format(value: Any) -> Any:
    if value in (None, "", "json") or isinstance(value, dict):
        return value
    raise problem("must be json or a JSON schema")


class OllamaRequest(Body):
    """What both kinds have in common; streamed unless told otherwise, as Ollama does."""

    model_config = ConfigDict(extra="allow")

    model: str
    stream: bool | None = None
    options: Annotated[dict[str, Any], BeforeValidator(_check_options)] = Field(
        default_factory=dict
    )
    format: Annotated[str | dict[str, Any] | None, BeforeValidator(_check_format)] = None

    def common(self) -> dict[str, Any]:
        """Return the fields of ours that do not depend on the kind; `ApiError` 400."""
        _refuse(self.model_extra or {}, _REFUSED, "")
        _refuse(self.options, _REFUSED_OPTIONS, "options.")
        fields: dict[str, Any] = {
            ours: self.options[theirs]
            for theirs, ours in _OPTIONS.items()
            if theirs in self.options
        }
        num_predict = self.options.get("num_predict")
        if num_predict is not None:
            if not isinstance(num_predict, int) or isinstance(num_predict, bool) or not num_predict:
                raise invalid_value(
                    "options.num_predict",
                    "num_predict must be a number of tokens, or negative for no limit",
                )
            if num_predict > 0:
                fields["max_tokens"] = num_predict
        if self.format:
            fields["response_format"] = _response_format(self.format)
        return fields | {
            "model": self.model.removesuffix(_LATEST),
            "stream": self.stream is not False,
        }


class OllamaChat(OllamaRequest):
    """``POST /api/chat``."""

    messages: list[dict[str, Any]] = Field(default_factory=list)
    tools: list[dict[str, Any]] | None = None

    def ours(self) -> dict[str, Any]:
        """Return the body of a chat completion; `ApiError` 400 for what is not supported."""
        for index, message in enumerate(self.messages):
            _refuse(message, {"images": ([],)}, f"messages[{index}].")
        tools = {"tools": self.tools} if self.tools else {}
        messages = [_with_thoughts(_with_text(message)) for message in self.messages]
        return self.common() | tools | {"messages": messages}


class OllamaGenerate(OllamaRequest):
    """``POST /api/generate``; with ``raw`` the prompt is no message but a text to go on with."""

    prompt: str = ""
    system: str | None = None
    raw: bool | None = None

    def as_chat(self) -> dict[str, Any]:
        """Return the body of a chat completion; `ApiError` 400 for what is not supported."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.common() | {"messages": [*system, {"role": "user", "content": self.prompt}]}

    def as_text(self) -> dict[str, Any]:
        """Return the body of a text completion; `ApiError` 400 for what is not supported."""
        return self.common() | {"prompt": self.prompt}


class OllamaShow(Body):
    """``POST /api/show``; the older name of ``model`` is ``name``."""

    model: str | None = None
    name: str | None = None

    @property
    def asked(self) -> str | None:
        """The model that is asked about, as it is called here."""
        found = self.model or self.name
        return found.removesuffix(_LATEST) if found else None


def _response_format(wanted: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(wanted, str):
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "format", "schema": wanted}}


def _with_text(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose tool calls have arguments as text: Ollama sends the object."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return message | {"tool_calls": [_with_text_arguments(call) for call in calls]}


def _with_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with what the model thought under our name for it."""
    if "thinking" not in message:
        return message
    return message | {"reasoning_content": message["thinking"] or None}


def _with_text_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    return call | {"function": function | {"arguments": json.dumps(function["arguments"])}}


def _refuse(fields: dict[str, Any], refused: dict[str, tuple[Any, ...]], where: str) -> None:
    for name, neutral in refused.items():
        value = fields.get(name)
        if value is not None and value not in neutral:
            raise ApiError(
                400,
                f"{where}{name} is not supported; leave it out",
                param=f"{where}{name}",
                code="unsupported_parameter",
            )

"""The bodies of requests for text: types and limits.

``null`` means the default everywhere. What is not carried out is in `gateway.foreign`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field

from gateway.bodies import Body, check_body, problem
from gateway.errors import invalid_value
from gateway.foreign import refuse_foreign
from gateway.messages import Message
from gateway.response_format import ResponseFormat, check_format
from gateway.tools.schemas import Tool, ToolChoice, check_choice

MAX_STOP_STRINGS: Final = 16
MAX_CHOICES: Final = 128
MAX_TOP_LOGPROBS: Final = 20
_INT64: Final = 2**63


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _check_stop(value: Any) -> Any:
    stops = _one_or_many(value)
    if stops is None:
        return []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise problem("must be a string or a list of strings")
    if len(stops) > MAX_STOP_STRINGS:
        raise problem(f"has {len(stops)} strings, at most {MAX_STOP_STRINGS} are allowed")
    if not all(stops):
        raise problem("must not contain an empty string")
    return stops


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_prompt(value: Any) -> Any:
    """Return a list of prompts, each a text or a list of token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(_is_id(item) for item in value):
            return [value]
        if all(isinstance(item, str) for item in value):
            return value
        if all(isinstance(item, list) and item and all(map(_is_id, item)) for item in value):
            return value
    raise problem("must be a string, token ids, or a list of one of these, and not be empty")


def _check_bias(value: Any) -> Any:
    """Return token ids and biases; JSON has only strings as keys."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise problem("must map token ids to numbers from -100 to 100")
    biases = {}
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10):
            raise problem(f"{key!r} is not a token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise problem(f"the bias of token {key} must be a number from -100 to 100")
        biases[int(key)] = float(bias)
    return biases


class StreamOptions(Body):
    """``stream_options``."""

    include_usage: bool | None = None


class GenerationRequest(Body):
    """What chat and text completions have in common.

    Beyond OpenAI's fields, as in vLLM: ``top_k``, ``min_p``, ``repetition_penalty``,
    ``ignore_eos``, ``min_tokens`` and ``return_token_ids``.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=_INT64)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=_INT64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: Annotated[
        dict[int, float], BeforeValidator(_check_bias, json_schema_input_type=dict[str, float])
    ] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    stop: Annotated[
        list[str],
        BeforeValidator(_check_stop, json_schema_input_type=str | list[str] | None),
    ] = Field(default_factory=list)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    response_format: Annotated[ResponseFormat | None, BeforeValidator(check_format)] = None
    user: str | None = None

    @property
    def answer_limit(self) -> tuple[str, int | None]:
        """The field that limits the answer, and its value."""
        return "max_tokens", self.max_tokens

    @property
    def num_top_logprobs(self) -> int | None:
        """How many alternatives each token is told with; None: no log probabilities."""
        return None

    def check(self) -> None:
        """Refuse fields that do not go together; `ApiError` 400."""

    def known_fields(self) -> dict[str, Any]:
        """Return what the client set, as JSON, without fields that are ignored."""
        known = set(type(self).model_fields)
        return self.model_dump(mode="json", include=known, exclude_unset=True)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk about usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(GenerationRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    tool_choice: Annotated[ToolChoice | None, BeforeValidator(check_choice)] = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=_INT64)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def answer_limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().answer_limit

    @property
    def num_top_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        if self.top_logprobs and not self.logprobs:
            raise invalid_value(
                "top_logprobs", "top_logprobs is only allowed when logprobs is true"
            )


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``; a prompt is a text or token ids, and there may be several."""

    prompt: Annotated[
        list[str | list[int]],
        BeforeValidator(
            _check_prompt,
            json_schema_input_type=str | list[str] | list[int] | list[list[int]],
        ),
    ]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def num_top_logprobs(self) -> int | None:
        return self.logprobs

    def check(self) -> None:
        if self.echo and self.logprobs is not None:
            raise invalid_value(
                "echo", "echo with logprobs is not supported: prompts have no log probabilities"
            )


RequestT = TypeVar("RequestT", bound=GenerationRequest)


def check_request(content: dict[str, Any], request_type: type[RequestT]) -> RequestT:
    """Return the request that a JSON object makes.

    Raises:
        ApiError: 400 that names the field.
    """
    request = check_body(content, request_type)
    refuse_foreign(request.model_extra or {})
    if request.stream_options is not None and not request.stream:
        raise invalid_value("stream_options", "stream_options is only allowed when stream is true")
    request.check()
    return request

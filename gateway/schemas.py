"""The bodies of requests: types, limits, and what is not supported yet, refused by name.

Strict types: ``"1"`` is not a number, as with OpenAI. ``null`` means the default everywhere.
A field that this software does not know is ignored, as OpenAI-compatible servers do, since
clients send many that change nothing; but one that would change the answer and is not
supported is refused unless its value changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from gateway.errors import ApiError

MAX_STOP_STRINGS: Final = 16
MAX_CHOICES: Final = 128
_INT64: Final = 2**63

_UNSUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    # Field: the values with which it changes nothing; null always does.
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "prompt_logprobs": (),
    "best_of": (1,),
    "suffix": ("",),
    "echo": (False,),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "prompt_embeds": (),
}


def _problem(message: str) -> PydanticCustomError:
    """Return an error whose message goes to the client as it is, text without placeholders."""
    return PydanticCustomError("value", "{message}", {"message": message})


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _check_stop(value: Any) -> Any:
    stops = _one_or_many(value)
    if stops is None:
        return []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _problem("must be a string or a list of strings")
    if len(stops) > MAX_STOP_STRINGS:
        raise _problem(f"has {len(stops)} strings, at most {MAX_STOP_STRINGS} are allowed")
    if not all(stops):
        raise _problem("must not contain an empty string")
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
    raise _problem("must be a string, token ids, or a list of one of these, and not be empty")


def _check_content(value: Any) -> Any:
    """Return the text of a message; parts are joined by line feeds."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _problem("must be a string or a list of text parts")
    texts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise _problem(f"part {index} is not text; only parts of type 'text' are supported")
        if not isinstance(part.get("text"), str):
            raise _problem(f"part {index} has no string 'text'")
        texts.append(part["text"])
    return "\n".join(texts)


def _check_no_tool_calls(value: Any) -> Any:
    if value:
        raise _problem("tool calls are not supported yet; leave them out")
    return None


def _check_bias(value: Any) -> Any:
    """Return token ids and biases; JSON has only strings as keys."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _problem("must map token ids to numbers from -100 to 100")
    biases = {}
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10):
            raise _problem(f"{key!r} is not a token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise _problem(f"the bias of token {key} must be a number from -100 to 100")
        biases[int(key)] = float(bias)
    return biases


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class StreamOptions(_Body):
    """``stream_options``."""

    include_usage: bool | None = None


class GenerationRequest(_Body):
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
    user: str | None = None

    @property
    def answer_limit(self) -> tuple[str, int | None]:
        """The field that limits the answer, and its value."""
        return "max_tokens", self.max_tokens

    def known_fields(self) -> dict[str, Any]:
        """Return what the client set, as JSON, without fields that are ignored."""
        known = set(type(self).model_fields)
        return self.model_dump(mode="json", include=known, exclude_unset=True)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk about usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class Message(_Body):
    """One message of a conversation; ``developer`` is the newer name of ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str,
        BeforeValidator(_check_content, json_schema_input_type=str | list[dict[str, str]]),
    ]
    tool_calls: Annotated[None, BeforeValidator(_check_no_tool_calls)] = None


class ChatRequest(GenerationRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=_INT64)] | None = None

    @property
    def answer_limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().answer_limit


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``; a prompt is a text or token ids, and there may be several."""

    prompt: Annotated[
        list[str | list[int]],
        BeforeValidator(
            _check_prompt,
            json_schema_input_type=str | list[str] | list[int] | list[list[int]],
        ),
    ]


RequestT = TypeVar("RequestT", bound=GenerationRequest)


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; `ApiError` 400 if it is none."""
    try:
        content = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(content, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return content


def check_request(content: dict[str, Any], request_type: type[RequestT]) -> RequestT:
    """Return the request that a JSON object makes.

    Raises:
        ApiError: 400 that names the field.
    """
    try:
        request = request_type.model_validate(content)
    except ValidationError as error:
        raise _first_problem(error) from None
    for name, value in (request.model_extra or {}).items():
        neutral = _UNSUPPORTED.get(name)
        if neutral is not None and value is not None and not _is_one_of(value, neutral):
            raise ApiError(
                400,
                f"{name} is not supported yet; leave it out",
                param=name,
                code="unsupported_parameter",
            )
    if request.stream_options is not None and not request.stream:
        raise ApiError(
            400,
            "stream_options is only allowed when stream is true",
            param="stream_options",
            code="invalid_value",
        )
    return request


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    # 0 == False, and logprobs=0 asks for something that logprobs=false does not.
    return any(type(value) is type(other) and value == other for other in neutral)


def _first_problem(error: ValidationError) -> ApiError:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ""
    for part in problem["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else part
    missing = problem["type"] == "missing"
    return ApiError(
        400,
        f"{param} is required" if missing else f"{param}: {problem['msg']}",
        param=param,
        code="missing_required_parameter" if missing else "invalid_value",
    )

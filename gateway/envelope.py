"""What stands around a body when it comes over MQTT: request ids, cancelling, ends. Pure.

A prompt is the JSON of an HTTP body, told apart by ``messages`` and ``prompt``, with an
optional ``request_id``. What goes back is the JSON of the HTTP answer; what HTTP says with
its status line and with ``[DONE]`` is said here by a last message with ``done``.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any, Final, Literal

from gateway.bodies import parse_object
from gateway.errors import CLIENT_CLOSED_REQUEST, ApiError, body_too_long, invalid_value
from gateway.forms import CHAT, COMPLETION, Form
from gateway.inference import Answer
from gateway.responses import Response, Usage

# Also what MQTT allows in a topic but a broker may not: Mosquitto closes the connection of a
# gateway that publishes to a topic with a control character (MQTT 5.0, 1.5.4).
_NAME: Final = re.compile(r"[A-Za-z0-9._@:-]{1,128}")
_MAX_MESSAGE_CHARACTERS: Final = 1000
"""Of an error: it may quote what the client sent, which may be as long as a body."""


class Done(Response):
    """The last message of a stream.

    Attributes:
        id: As in every chunk.
        chunks: How many there were, so that a reader sees a gap or a repeat.
        finish_reason: Of the first choice.
        finish_reasons: Of each choice, where there are several.
    """

    done: Literal[True]
    request_id: str
    id: str
    chunks: int
    finish_reason: str | None
    finish_reasons: list[str | None] | None = None
    usage: Usage


def is_name(text: str) -> bool:
    """Whether a client or a request may be called so: one harmless level of a topic."""
    return _NAME.fullmatch(text) is not None


def make_request_id() -> str:
    """Return an id for a request that brought none."""
    return f"req-{secrets.token_hex(12)}"


def read_message(payload: bytes, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object of a payload; `ApiError` 413 or 400 if it is none."""
    if len(payload) > max_bytes:
        raise body_too_long(max_bytes)
    return parse_object(payload)


def name_in(message: Mapping[str, Any], field: str) -> str | None:
    """Return the request id in a field, None without one; `ApiError` 400 if it is none."""
    value = message.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or not is_name(value):
        raise invalid_value(
            field, f"{field} must be a string of 1 to 128 letters, digits and . _ @ : -"
        )
    return value


def form_of(message: Mapping[str, Any]) -> Form[Any]:
    """Return what kind of request this is; `ApiError` 400 if it is none or two."""
    is_chat = message.get("messages") is not None
    is_completion = message.get("prompt") is not None
    if is_chat and is_completion:
        raise invalid_value("prompt", "send messages (a chat) or prompt (a text), not both")
    if is_chat:
        return CHAT
    if is_completion:
        return COMPLETION
    raise ApiError(
        400,
        "messages (a chat), prompt (a text to go on with) or cancel (a request id) is required",
        param="messages",
        code="missing_required_parameter",
    )


def cancelled() -> ApiError:
    """Return the last message of a request that its client has cancelled."""
    return ApiError(CLIENT_CLOSED_REQUEST, "the client cancelled the request", code="cancelled")


def done_json(answer: Answer[Any], request_id: str, num_chunks: int) -> str:
    """Return the last message of a stream that went well."""
    reasons = answer.finish_reasons
    done = Done(
        done=True,
        request_id=request_id,
        id=answer.id,
        chunks=num_chunks,
        finish_reason=reasons[0],
        usage=answer.usage,
    )
    if len(reasons) > 1:
        done.finish_reasons = reasons
    return done.json_text()


def error_json(error: ApiError, request_id: str) -> str:
    """Return the last message of a request that failed: OpenAI's error object and a status."""
    body = error.body()
    body["error"]["message"] = error.message[:_MAX_MESSAGE_CHARACTERS]
    body |= {"status": error.status, "done": True, "request_id": request_id}
    if "Retry-After" in error.headers:
        body["retry_after_seconds"] = int(error.headers["Retry-After"])
    return json.dumps(body, ensure_ascii=False)

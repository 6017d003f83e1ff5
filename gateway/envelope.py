"""What stands around a body when it comes over MQTT: ids, addresses, expiry, ends. Pure.

A prompt is the JSON of an HTTP body, told apart by ``messages`` and ``prompt``, with an
optional ``request_id``. What goes back is the JSON of the HTTP answer; what HTTP says with
its status line and with ``[DONE]`` is said here by a last message with ``done``.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from broker.topics import REPLY
from broker.transport import NO_PROPERTIES, Properties
from gateway.bodies import parse_object
from gateway.errors import CLIENT_CLOSED_REQUEST, ApiError, body_too_long, invalid_value
from gateway.forms import CHAT, COMPLETION, Form
from gateway.inference import Answer
from gateway.responses import Response, Usage

# Also what MQTT allows in a topic but a broker may not: Mosquitto closes the connection of a
# gateway that publishes to a topic with a control character (MQTT 5.0, 1.5.4).
_NAME: Final = re.compile(r"[A-Za-z0-9._@:-]{1,128}")
EVERYTHING: Final = "*"
"""What a client cancels instead of an id: all that it has open. No id looks like it."""
_MAX_CORRELATION_BYTES: Final = 1024
"""Every chunk of an answer brings it back."""
_MAX_EXPIRY_SECONDS: Final = 86400
_MAX_MESSAGE_CHARACTERS: Final = 1000
"""Of an error: it may quote what the client sent, which may be as long as a body."""


@dataclass(frozen=True, slots=True)
class ReplyTo:
    """Where the messages of one request go.

    Attributes:
        client: Who asked.
        request_id: In their last message, and in their topic unless the client chose one.
        topic: Always under ``replies/<client>/``.
        correlation: What MQTT 5 brings back with each of them.
    """

    client: str
    request_id: str
    topic: str
    correlation: bytes | None = None


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


def cancelled_in(message: Mapping[str, Any]) -> str | None:
    """Return the request id to cancel, or `EVERYTHING`; None, or `ApiError` 400, as `name_in`."""
    return EVERYTHING if message.get("cancel") == EVERYTHING else name_in(message, "cancel")


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


def reply_to(
    site: str, client: str, request_id: str, properties: Properties = NO_PROPERTIES
) -> ReplyTo:
    """Return where replies go; ``replies/<client>/<request id>`` unless MQTT 5 says otherwise.

    Raises:
        ApiError: 400 for a response topic or correlation data that cannot be used.
    """
    topic = REPLY.path(site, client=client, request=request_id)
    asked, correlation = properties.response_topic, properties.correlation
    if asked is not None:
        own = topic.removesuffix(request_id)
        levels = asked.removeprefix(own).split("/")
        if not asked.startswith(own) or not all(is_name(level) for level in levels):
            raise invalid_value(
                "response_topic",
                f"the response topic must be {own} and one or more levels of letters, digits "
                "and . _ @ : -",
            )
        topic = asked
    if correlation is not None and len(correlation) > _MAX_CORRELATION_BYTES:
        raise invalid_value(
            "correlation_data",
            f"the correlation data have {len(correlation)} bytes; at most "
            f"{_MAX_CORRELATION_BYTES} come back",
        )
    return ReplyTo(client, request_id, topic, correlation)


def expiry_of(message: Mapping[str, Any], properties: Properties) -> float | None:
    """Return for how many seconds an answer is worth something; `ApiError` 400.

    The field ``expires_seconds`` is for clients that have no MQTT 5; the shorter one counts.
    """
    value = message.get("expires_seconds")
    if value is not None and (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= _MAX_EXPIRY_SECONDS
    ):
        raise invalid_value(
            "expires_seconds",
            f"expires_seconds must be a number over 0 and at most {_MAX_EXPIRY_SECONDS}",
        )
    given = [each for each in (value, properties.expiry_seconds) if each is not None]
    return min(given, default=None)


def carrier_of(message: Mapping[str, Any], properties: Properties) -> dict[str, str]:
    """Return the trace that a prompt is part of; none that cannot be read is an error.

    The field ``traceparent`` is for clients that have no MQTT 5.
    """
    found = properties.traceparent or message.get("traceparent")
    return {"traceparent": found} if isinstance(found, str) else {}


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


def expired(seconds: float) -> ApiError:
    """Return the last message of a request whose answer would come too late."""
    return ApiError(
        504, f"the prompt expired after {seconds:g} s", code="expired", kind="server_error"
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

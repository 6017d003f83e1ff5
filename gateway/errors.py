"""Errors as OpenAI's clients know them: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from gateway.requests import (
    DeadlineExceededError,
    EngineError,
    NotReadyError,
    QueueFullError,
    TakenOverError,
    TooLargeError,
)

CLIENT_CLOSED_REQUEST: Final = 499
"""Nginx's status for an answer that its client wants no more."""


class ApiError(Exception):
    """An answer other than 2xx; raised anywhere below HTTP or MQTT, turned into JSON there.

    Attributes:
        status: HTTP status.
        message: For the client: the field, the limit and the remedy.
        param: The field of the request that is at fault, if one is.
        code: What a program can compare.
        kind: OpenAI's ``type``: ``invalid_request_error``, ``server_error``, ...
        headers: Additional response headers, such as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON of the answer."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


@contextmanager
def told_of(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors of the block name the fields that the client has sent.

    Args:
        names: Field of the request that was made from the client's: the client's field. Each
            stands for all below it, and of two that do the longer one counts.
    """
    try:
        yield
    except ApiError as error:
        if error.param is None or (field := _field_of(error.param, names)) is None:
            raise
        param = names[field] + error.param.removeprefix(field)
        message = error.message.replace(error.param, param)
        renamed = ApiError(
            error.status,
            message,
            param=param,
            code=error.code,
            kind=error.kind,
            headers=error.headers,
        )
        raise renamed from error


def _field_of(param: str, names: Mapping[str, str]) -> str | None:
    found = [name for name in names if param == name or param.startswith((f"{name}.", f"{name}["))]
    return max(found, key=len, default=None)


def invalid_value(param: str, message: str) -> ApiError:
    """Return a 400 about one field."""
    return ApiError(400, message, param=param, code="invalid_value")


def not_ready(message: str, retry_after_seconds: int) -> ApiError:
    """Return a 503 that says when to come again."""
    return ApiError(
        503,
        message,
        code="not_ready",
        kind="server_error",
        headers={"Retry-After": str(retry_after_seconds)},
    )


def unauthorized(message: str) -> ApiError:
    """Return the 401 for a request without a key that counts."""
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def forbidden(message: str) -> ApiError:
    """Return the 403 for a key that is not good for what is asked."""
    return ApiError(403, message, code="insufficient_permissions")


def stopping_error() -> ApiError:
    """Return the 503 for what is open when the gateway stops."""
    return ApiError(503, "the gateway is stopping", code="stopping", kind="server_error")


def body_too_long(max_bytes: int) -> ApiError:
    """Return the 413 for a body over the limit."""
    return ApiError(413, f"the body is longer than {max_bytes} bytes", code="request_too_large")


def no_embeddings() -> ApiError:
    """Return the 400 for what asks for vectors instead of text."""
    return ApiError(
        400,
        "embeddings are not supported: the models served here generate text",
        code="embeddings_not_supported",
    )


def internal_error() -> ApiError:
    """Return the answer to a bug of ours; it tells nothing of it."""
    return ApiError(500, "internal error", code="internal_error", kind="server_error")


def from_engine(error: EngineError, prompt_param: str) -> ApiError:
    """Return the answer to a client whose request the engine did not finish.

    Args:
        error: What `gateway.requests.Engine.generate` raised.
        prompt_param: The field that holds the prompt: ``messages`` or ``prompt``.
    """
    message = str(error)
    match error:
        case QueueFullError(retry_after_seconds=seconds):
            return ApiError(
                429,
                message,
                code="queue_full",
                kind="rate_limit_error",
                headers={"Retry-After": str(seconds)},
            )
        case NotReadyError(retry_after_seconds=seconds):
            return not_ready(message, seconds)
        case TooLargeError(largest_tokens=largest):
            return too_long(message, prompt_param, largest)
        case TakenOverError():
            return ApiError(409, message, code="taken_over", kind="server_error")
        case DeadlineExceededError():
            return ApiError(504, message, code="deadline_exceeded", kind="server_error")
        case _:
            return ApiError(500, message, code="generation_failed", kind="server_error")


def too_long(message: str, param: str, largest_tokens: int) -> ApiError:
    """Return a 400 for a request that can never fit; it names the largest that does."""
    if str(largest_tokens) not in message:
        message = f"{message} (at most {largest_tokens} tokens, prompt and answer together)"
    return ApiError(400, message, param=param, code="context_length_exceeded")

"""A small HTTP client of a running fog: plan, devices, readiness, streamed answers.

Standard library only, so that `e2llm plan` and `e2llm chat` start at once and run where
nothing but the command line is installed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from fog.address import parse_address
from fog.answer import Answer, StreamedAnswer, server_sent_events

URL_VARIABLE: Final = "E2LLM_URL"
KEY_VARIABLE: Final = "E2LLM_API_KEY"
DEFAULT_URL: Final = "http://127.0.0.1:8080"
LOOK_SECONDS: Final = 10.0
"""Silence after which a gateway that is only asked how things are counts as frozen."""
RESUME_SECONDS: Final = 60.0
RESUME_PAUSE_SECONDS: Final = 0.25
_NOT_READY: Final = 503

Message = Mapping[str, str]
"""``{"role": ..., "content": ...}``"""


class FogUnreachableError(Exception):
    """Nothing answers at the address."""

    def __init__(self, url: str, reason: object) -> None:
        super().__init__(
            f"no fog answers at {url} ({reason}). Start one with `e2llm up`, or name the right "
            f"address with --url or {URL_VARIABLE}"
        )


class FogSilentError(FogUnreachableError):
    """Something listens at the address and does not answer."""

    def __init__(self, url: str, seconds: float) -> None:
        Exception.__init__(
            self,
            f"something listens at {url} but has not answered for {seconds:g} s: a gateway that is "
            "frozen or overloaded, or another program",
        )


class CutOffError(FogUnreachableError):
    """An answer broke off, and nobody could be asked for the rest of it."""


class FogRequestError(Exception):
    """The fog answered with an error.

    Attributes:
        status: HTTP status; 200 for an error in the middle of a stream.
        param: The field at fault, if one is.
    """

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


@dataclass(frozen=True, slots=True)
class Readiness:
    """The answer to ``GET /readyz``; ``details`` are figures and problems by name."""

    ready: bool
    reason: str
    progress: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked.

    Attributes:
        messages: The conversation, the question last.
        max_tokens: Tokens the answer may have; None: the fog's default.
    """

    messages: Sequence[Message]
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None


class FogClient:
    """Talks to one gateway.

    Args:
        url: ``http://host:port`` or https.
        key: API key, where the gateway needs one.
        timeout_seconds: For each wait on the network.
        look_seconds: The same where the gateway only says how things are, if that is less.
        resume_seconds: How long an answer that was cut off is asked for again; a gateway
            that was started again has it in its journal.

    Raises:
        AddressError: The address is none.

    Raises (all methods):
        FogUnreachableError: Nothing answers, what listens stays silent (`FogSilentError`), or
            it stopped in the middle (`CutOffError`).
        FogRequestError: The gateway refused; the message is the gateway's.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_seconds: float = 60.0,
        look_seconds: float = LOOK_SECONDS,
        resume_seconds: float = RESUME_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._address = parse_address(url)
        self.url = url.rstrip("/")
        self.key = key
        self._identity = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._timeout = timeout_seconds
        self._look_seconds = min(look_seconds, timeout_seconds)
        self._resume_seconds = resume_seconds
        self._clock = clock
        self._sleep = sleep

    def readiness(self) -> Readiness:
        """Return whether requests can be served now, and why not."""
        try:
            body = self._get("/readyz")
        except _NotReadyError as error:
            return error.readiness
        except FogRequestError as error:
            return Readiness(ready=False, reason=str(error))
        return _readiness(body, ready=True)

    def plan(self) -> dict[str, Any]:
        """Return the body of ``GET /fog/plan``."""
        plan: dict[str, Any] = self._get("/fog/plan")
        return plan

    def plan_history(self) -> list[dict[str, Any]]:
        """Return the body of ``GET /fog/plans``: decisions of the planner, oldest first."""
        decisions: list[dict[str, Any]] = self._get("/fog/plans")
        return decisions

    def place_device(self, device: str, verb: str) -> dict[str, Any]:
        """Ask for ``cordon``, ``drain`` or ``uncordon``; return what is asked of it now."""
        return self.change("POST", f"/fog/devices/{quote(device, safe='')}/{verb}", {})

    def keys(self) -> list[dict[str, Any]]:
        """Return the body of ``GET /fog/keys``: all API keys, without what is secret in them."""
        keys: list[dict[str, Any]] = self._get("/fog/keys")
        return keys

    def create_key(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Make an API key; ``key`` of what comes back is shown only once."""
        return self.change("POST", "/fog/keys", wanted)

    def revoke_key(self, key_id: str) -> dict[str, Any]:
        """End an API key; return its record."""
        return self.change("DELETE", f"/fog/keys/{quote(key_id, safe='')}")

    def requests(self) -> list[dict[str, Any]]:
        """Return the body of ``GET /fog/requests``: open ones, then the latest that ended."""
        requests: list[dict[str, Any]] = self._get("/fog/requests")
        return requests

    def change(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Ask for a change; return what the gateway says of it."""
        with self._request(method, path, None if body is None else dict(body)) as response:
            changed: dict[str, Any] = _json(response.read())
        return changed

    def models(self) -> list[dict[str, Any]]:
        """Return the body of ``GET /fog/models``."""
        models: list[dict[str, Any]] = self._get("/fog/models")
        return models

    def add_model(self, source: str, name: str | None, weights: str | None) -> dict[str, Any]:
        """Let the gateway prepare a model; return it as it is now."""
        body = {"source": source, "name": name, "weights": weights}
        given = {key: value for key, value in body.items() if value is not None}
        with self._request("POST", "/fog/models", given) as response:
            added: dict[str, Any] = _json(response.read())
        return added

    def use_models(self, names: Sequence[str]) -> None:
        """Let the fog serve these models and give up the others."""
        with self._request("PUT", "/fog/models/use", {"models": list(names)}) as response:
            response.read()

    def remove_model(self, name: str) -> list[dict[str, Any]]:
        """Forget a model; return those that are left."""
        with self._request("DELETE", f"/fog/models/{quote(name, safe='')}") as response:
            left: list[dict[str, Any]] = _json(response.read())
        return left

    def devices(self) -> list[dict[str, Any]]:
        """Return the body of ``GET /fog/devices``."""
        devices: list[dict[str, Any]] = self._get("/fog/devices")
        return devices

    def model(self) -> str:
        """Return the name of the model that the fog serves."""
        models = self._get("/v1/models").get("data") or []
        if not models:
            raise FogRequestError(200, "the fog serves no model yet")
        return str(models[0]["id"])

    def ask(
        self, question: Question, model: str, on_text: Callable[[str], None] = lambda text: None
    ) -> Answer:
        """Stream an answer; ``on_text`` gets each piece of text as it arrives.

        Asks as a chat; a model without a chat template is given the last message as a
        prompt to complete.
        """
        common: dict[str, Any] = {
            "model": model,
            "stream": True,
            "temperature": question.temperature,
            "return_token_ids": True,
        }
        if question.max_tokens is not None:
            common["max_tokens"] = question.max_tokens
        if question.seed is not None:
            common["seed"] = question.seed
        try:
            return self.chat({**common, "messages": list(question.messages)}, on_text)
        except FogRequestError as error:
            if error.status != 400 or "template" not in str(error).lower():
                raise
        prompt = {**common, "prompt": question.messages[-1]["content"]}
        return self._stream("/v1/completions", prompt, on_text)

    def chat(
        self, body: Mapping[str, Any], on_text: Callable[[str], None] = lambda text: None
    ) -> Answer:
        """Stream the answer to the body of a chat, as ``POST /v1/chat/completions`` takes it.

        An answer that is cut off is read on where it was.
        """
        return self._stream("/v1/chat/completions", {**body, "stream": True}, on_text)

    def _stream(self, path: str, body: dict[str, Any], on_text: Callable[[str], None]) -> Answer:
        progress = StreamedAnswer(self._clock())
        try:
            with self._request("POST", path, body) as response:
                self._read(response, progress, on_text)
        except (FogUnreachableError, _StoppingError):
            # A gateway that was started again has it in its journal.
            if progress.answer_id is None:
                raise
            self._go_on(progress, on_text)
        return progress.answer(self._clock())

    def _go_on(self, progress: StreamedAnswer, on_text: Callable[[str], None]) -> None:
        """Read on behind the last event, at this gateway or the one that follows it."""
        deadline = self._clock() + self._resume_seconds
        while True:
            self._sleep(RESUME_PAUSE_SECONDS)
            headers = {"Last-Event-ID": progress.position} if progress.position else {}
            path = f"/fog/requests/{progress.answer_id}?stream=true"
            try:
                with self._request("GET", path, headers=headers) as response:
                    self._read(response, progress, on_text)
                return
            except (FogUnreachableError, _StoppingError) as error:
                reason: FogUnreachableError | FogRequestError = error
            except FogRequestError as error:
                if error.status != _NOT_READY:
                    raise
                reason = error  # Not prepared yet, or Redis does not answer yet.
            if self._clock() >= deadline:
                raise CutOffError(
                    self.url, f"an answer was cut off and cannot be read on: {reason}"
                ) from reason

    def _read(
        self,
        response: http.client.HTTPResponse,
        progress: StreamedAnswer,
        on_text: Callable[[str], None],
    ) -> None:
        """Take the events of a stream up to its end.

        Raises:
            FogUnreachableError: It was cut off.
        """
        for event_id, data in server_sent_events(response):
            if data == "[DONE]":
                return
            chunk = _json(data)
            if error := chunk.get("error"):
                kind = _StoppingError if error.get("code") == "stopping" else FogRequestError
                raise kind(200, str(error.get("message", error)), error.get("param"))
            if text := progress.take(chunk, self._clock()):
                on_text(text)
            progress.position = event_id or progress.position
        raise FogUnreachableError(self.url, "the stream was cut off")

    def _get(self, path: str) -> Any:
        with self._request("GET", path, seconds=self._look_seconds) as response:
            return _json(response.read())

    @contextmanager
    def _request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        seconds: float | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        is_https, host, port, base = self._address
        connect = http.client.HTTPSConnection if is_https else http.client.HTTPConnection
        seconds = self._timeout if seconds is None else seconds
        connection = connect(host, port, timeout=seconds)
        is_connected = False
        try:
            # Apart from the request: the system takes connections for a process that is frozen.
            connection.connect()
            is_connected = True
            payload = None if body is None else json.dumps(body).encode()
            content = {"Content-Type": "application/json"} if body is not None else {}
            sent = {**self._identity, **content, **(headers or {})}
            connection.request(method, base + path, payload, sent)
            response = connection.getresponse()
            if response.status not in (200, 202):
                raise _refusal(response.status, response.read())
            # Of its own: a response that ends with its connection is not closed by that.
            with contextlib.closing(response):
                yield response
        except (OSError, http.client.HTTPException) as error:
            if is_connected and isinstance(error, TimeoutError):
                raise FogSilentError(self.url, seconds) from error
            raise FogUnreachableError(self.url, error or type(error).__name__) from error
        finally:
            connection.close()


def _refusal(status: int, payload: bytes) -> FogRequestError:
    try:
        body = json.loads(payload)
    except ValueError:
        return FogRequestError(status, f"HTTP {status}")
    if not isinstance(body, dict):
        return FogRequestError(status, f"HTTP {status}: {body}")
    error = body.get("error")
    if isinstance(error, dict):
        return FogRequestError(status, str(error.get("message", status)), error.get("param"))
    return _NotReadyError(status, _readiness(body, ready=False))


class _StoppingError(FogRequestError):
    """The gateway ends; whoever follows it goes on with the answer."""


class _NotReadyError(FogRequestError):
    def __init__(self, status: int, readiness: Readiness) -> None:
        super().__init__(status, readiness.reason)
        self.readiness = readiness


def _readiness(body: Any, *, ready: bool) -> Readiness:
    body = body if isinstance(body, dict) else {}
    progress, details = body.get("progress"), body.get("details")
    return Readiness(
        ready=ready,
        reason=str(body.get("reason") or ""),
        progress=float(progress) if isinstance(progress, int | float) else None,
        details=details if isinstance(details, dict) else {},
    )


def _json(data: str | bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise FogRequestError(
            200, f"the fog answered with something that is not JSON: {error}"
        ) from error

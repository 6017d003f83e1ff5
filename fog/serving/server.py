"""An OpenAI-compatible server as a load generator uses it: models, probes, streamed answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import msgspec

from fog.client import FogRequestError, FogUnreachableError
from fog.serving.sample import Sample

_SHOWN_CHARACTERS: Final = 200


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    token_ids: list[int] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    id: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


_CHUNK: Final = msgspec.json.Decoder(_Chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a server wants to be asked.

    Attributes:
        is_chat: ``/v1/chat/completions``, not ``/v1/completions``.
        ignores_eos: It knows ``ignore_eos``, so that answers have the wanted length.
    """

    model: str
    is_chat: bool = True
    ignores_eos: bool = True

    @property
    def path(self) -> str:
        """Where requests go, behind the server's ``/v1``."""
        return "/chat/completions" if self.is_chat else "/completions"

    def body(self, prompt: str, max_tokens: int, *, is_streamed: bool = True) -> dict[str, Any]:
        """Return the body of a greedy request."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": is_streamed,
        }
        if self.is_chat:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if self.ignores_eos:
            body["ignore_eos"] = True
        if is_streamed:
            body["stream_options"] = {"include_usage": True}
        return body


class Server:
    """Asks one server, many requests at a time.

    Args:
        client: Of `open_server`.
        url: ``http://host:port``, with or without ``/v1``.
    """

    def __init__(self, client: httpx2.AsyncClient, url: str) -> None:
        self._client = client
        self.url = url

    async def model(self, name: str | None) -> tuple[str, int | None]:
        """Return a model's name and context in tokens (None: the server does not say).

        Args:
            name: None: the first that the server has.

        Raises:
            FogUnreachableError: Nothing answers.
            FogRequestError: There is no such model, or no list of them.
        """
        payload = await self._ask("GET", "/models")
        try:
            models = msgspec.json.decode(payload, type=_Models).data
        except msgspec.DecodeError as error:
            raise FogRequestError(200, f"its list of models cannot be read: {error}") from error
        found = next((model for model in models if name in (None, model.id)), None)
        if found is None:
            names = ", ".join(model.id for model in models) or "none"
            raise FogRequestError(404, f"there is no model {name}; it has: {names}")
        return found.id, found.max_model_len

    async def count(self, dialect: Dialect, prompt: str) -> int:
        """Return how many tokens the server counts for a prompt.

        Raises:
            FogUnreachableError: Nothing answers.
            FogRequestError: It refuses, or does not say.
        """
        body = dialect.body(prompt, 1, is_streamed=False)
        payload = await self._ask("POST", dialect.path, body)
        try:
            usage = msgspec.json.decode(payload, type=_Chunk).usage
        except msgspec.DecodeError as error:
            raise FogRequestError(200, f"its answer cannot be read: {error}") from error
        if usage is None or usage.prompt_tokens < 1:
            raise FogRequestError(200, "its answers have no usage.prompt_tokens")
        return usage.prompt_tokens

    async def stream(
        self, dialect: Dialect, body: Mapping[str, Any], due_at: float, start: float
    ) -> Sample:
        """Ask, read to the end, and return what was seen; errors are part of it.

        Times count from ``start``, which `time.perf_counter` gave.
        """
        seen = _Seen(due_at, time.perf_counter() - start)
        try:
            async with self._client.stream("POST", self._path(dialect.path), json=body) as response:
                if response.status_code != 200:
                    seen.error = _refusal(response.status_code, await response.aread())
                else:
                    async for line in response.aiter_lines():
                        if line.startswith("data:"):
                            seen.take(line[5:].strip(), time.perf_counter() - start)
        except (httpx2.HTTPError, OSError) as error:
            seen.error = f"{type(error).__name__}: {error}".rstrip(": ")
        except msgspec.DecodeError as error:
            seen.error = f"an event that cannot be read: {error}"
        except asyncio.CancelledError:
            seen.error = "interrupted"
        return seen.sample()

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        try:
            response = await self._client.request(method, self._path(path), json=body)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise FogUnreachableError(self.url, error or type(error).__name__) from error
        if response.status_code != 200:
            raise FogRequestError(
                response.status_code, _refusal(response.status_code, response.content)
            )
        return response.content

    def _path(self, path: str) -> str:
        base = self.url.rstrip("/")
        return base + path if base.endswith("/v1") else f"{base}/v1{path}"


@asynccontextmanager
async def open_server(
    url: str, *, key: str | None, timeout_seconds: float
) -> AsyncIterator[Server]:
    """Open a server for as many connections as the load has requests.

    Args:
        url: ``http://host:port``, with or without ``/v1``.
        key: Sent as ``Authorization: Bearer``.
        timeout_seconds: Longest silence.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(
        headers=headers, limits=limits, timeout=timeout_seconds, trust_env=False
    ) as client:
        yield Server(client, url)


class _Seen:
    """A sample in the making."""

    def __init__(self, due_at: float, sent_at: float) -> None:
        self._due_at, self._sent_at = due_at, sent_at
        self._times: list[float] = []
        self._piece_tokens: list[int] = []
        self._answer_id = ""
        self._usage = _Usage()
        self._is_ended = False
        self.error = ""

    def take(self, data: str, now: float) -> None:
        if data == "[DONE]":
            self._is_ended = True
            return
        chunk = _CHUNK.decode(data)
        if chunk.error:
            self.error = _error_text(chunk.error)
        self._usage = chunk.usage or self._usage
        self._answer_id = chunk.id or self._answer_id
        for choice in chunk.choices:
            delta = choice.delta or _Delta()
            # The first chunk of a chat only names the role; a token may have no text yet.
            if choice.text or choice.token_ids or delta.content or delta.reasoning_content:
                self._times.append(now)
                self._piece_tokens.append(len(choice.token_ids or ()) or 1)

    def sample(self) -> Sample:
        error = self.error
        if not error and not self._is_ended:
            error = "the stream was cut off"
        if not error and not self._times:
            error = "an answer without a token"
        return Sample(
            due_at=self._due_at,
            sent_at=self._sent_at,
            times=tuple(self._times),
            piece_tokens=tuple(self._piece_tokens),
            answer_id=self._answer_id,
            prompt_tokens=self._usage.prompt_tokens,
            answer_tokens=self._usage.completion_tokens or len(self._times),
            error=error,
        )


def _refusal(status: int, payload: bytes) -> str:
    try:
        error = msgspec.json.decode(payload, type=_Chunk).error
    except msgspec.DecodeError:
        error = None
    text = _error_text(error) if error else payload.decode(errors="replace").strip()
    return f"HTTP {status}: {text}"[:_SHOWN_CHARACTERS].rstrip(": ")


def _error_text(error: object) -> str:
    if isinstance(error, dict) and "message" in error:
        return str(error["message"])
    return str(error)

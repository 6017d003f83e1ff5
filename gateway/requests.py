"""What the HTTP side and the bus side of the gateway say to each other.

The API builds a `Generation` and reads `GeneratedToken`s; it knows nothing of replicas,
grants or attempts. The engine knows nothing of HTTP, text or templates.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from broker.control import DeviceControl, ModelManifest
from broker.events import Logprobs
from broker.identity import ModelIdentity
from broker.metrics import Sample
from broker.plan import Plan
from broker.traffic import Traffic
from broker.whatif import WhatIf, WhatIfAnswer
from broker.work import Sampling
from gateway.course import Stretch
from gateway.tracing.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One choice to generate.

    Attributes:
        request_id: Unique for ever; several choices of one HTTP request have several.
        prompt_ids: At least one token id.
        max_tokens: Tokens the answer may have, at least 1.
        sampling: With seed and EOS ids filled in.
        deadline_seconds: Seconds from submission after which the request fails; None: never.
        body: The client's JSON, for the journal only; never logged.
        created: UTC seconds of the answer's beginning, for the journal only.
        generated: Tokens of the answer that an earlier stream brought; the engine goes on
            behind them.
        generated_logprobs: Theirs, where they were asked for.
        entry: Where the journal has it; "": under its request id.
        caller: Id of who asked, and may have the answer again; for the journal only.
        model: That shall answer; None: the one that the fog serves.
        timeline: Of its trace, which grows; None: it is not traced.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    deadline_seconds: float | None = None
    body: dict[str, Any] = field(default_factory=dict)
    created: int = 0
    generated: tuple[int, ...] = ()
    generated_logprobs: tuple[Logprobs | None, ...] = ()
    entry: str = ""
    caller: str = ""
    model: ModelIdentity | None = None
    timeline: Timeline | None = None

    @property
    def journal_id(self) -> str:
        """The id under which the journal has it, whichever stream it is."""
        return self.entry or self.request_id


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """A token of the answer; ``finish_reason`` (``stop`` or ``length``) on the last one.

    ``cached_tokens``, on the first one, are leading positions of the prompt that an earlier one
    had computed.
    """

    index: int
    token_id: int
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    cached_tokens: int = 0


class EngineError(Exception):
    """Base of what `Engine.generate` raises; the message is fit for a client."""


class QueueFullError(EngineError):
    """The queue is at its limit; ``retry_after_seconds`` is an estimate."""

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotReadyError(EngineError):
    """No plan is active or the bus is gone; the message says why."""

    def __init__(self, message: str, retry_after_seconds: int = 5) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TooLargeError(EngineError):
    """The request can never fit; ``largest_tokens`` is the most that does (prompt + answer)."""

    def __init__(self, message: str, largest_tokens: int) -> None:
        super().__init__(message)
        self.largest_tokens = largest_tokens


class GenerationFailedError(EngineError):
    """The request was accepted and then failed for good."""


class DeadlineExceededError(EngineError):
    """The request's deadline passed."""


class TakenOverError(EngineError):
    """Another connection reads the rest of this answer."""


class JournalUnavailableError(Exception):
    """What was asked before cannot be looked up now; the message says why."""


@dataclass(frozen=True, slots=True)
class Written:
    """What the journal has of one choice: the fields of its entry, and its tokens so far.

    Attributes:
        logprobs: One per token, None where they were not asked for.
    """

    fields: dict[str, str]
    tokens: tuple[int, ...]
    logprobs: tuple[Logprobs | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether requests can be served now; ``progress`` is 0..1 while nodes load."""

    ready: bool
    reason: str
    progress: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


class TokenSource(Protocol):
    """Where the tokens of answers come from."""

    def generate(self, generation: Generation) -> AsyncIterator[GeneratedToken]:
        """Queue the request and yield its tokens; closing the iterator cancels the work.

        Raises:
            QueueFullError, NotReadyError, TooLargeError: Before the first token.
            GenerationFailedError, DeadlineExceededError: At any time.
        """


class Engine(TokenSource, Protocol):
    """The bus side as the API sees it. All methods are called on the event loop."""

    async def written(self, entry: str) -> Written | None:
        """Return what the journal has of a choice; None: nothing (any more).

        Raises:
            JournalUnavailableError: Redis does not answer, or there is none.
        """

    async def take_over(self, entries: Sequence[str]) -> int:
        """End what this gateway streams of an answer's choices; return how often it went on.

        Raises:
            JournalUnavailableError: Redis does not answer, or there is none.
        """

    def largest_request_tokens(self, model: ModelIdentity | None = None) -> int | None:
        """Prompt plus answer that the active plan for a model can hold; None without a plan."""

    def arithmetics(self, model: ModelIdentity | None = None) -> tuple[str, ...]:
        """The ways in which devices of the active plan for a model compute, each once."""

    def active_plan(self) -> Plan | None:
        """The plan that serves, of whichever models."""

    def num_unfinished(self, manifest: ModelManifest) -> int:
        """Requests of a model that have not ended."""

    def model_state(self, manifest: ModelManifest) -> dict[str, Any]:
        """What ``GET /fog/models`` says of a model that is published."""

    def fog_plan(self) -> dict[str, Any]:
        """The body of ``GET /fog/plan``."""

    def ask_of_device(
        self, device: str, change: Callable[[DeviceControl], DeviceControl | None]
    ) -> dict[str, Any]:
        """Change what an owner asks of a device, None: nothing any more, and return it.

        Raises:
            gateway.owners.UnknownDeviceError: There is none of that name.
            NotReadyError: The bus is gone.
        """

    def utc_offset_of(self, device: str) -> int:
        """Local time of a device minus UTC, in seconds; 0 while it has not said it."""

    def plan_history(self) -> list[dict[str, Any]]:
        """The body of ``GET /fog/plans``: the planner's latest decisions, oldest first."""

    def devices(self) -> list[dict[str, Any]]:
        """The body of ``GET /fog/devices``."""

    def courses(self) -> dict[str, tuple[Stretch, ...]]:
        """What requests did, by their ids: those that are open, and the latest that ended."""

    async def what_if(self, asked: WhatIf) -> WhatIfAnswer:
        """Return what the planner would plan for a fog that is not there; nothing moves.

        Raises:
            NotReadyError: There is nobody to ask now.
            DeadlineExceededError: The planner did not answer in time.
        """

    def readiness(self) -> Readiness:
        """The answer to ``GET /readyz``."""

    def expect_models(self, names: Iterable[str]) -> None:
        """Leave these on the bus that a gateway before this one published."""

    def samples(self, others: Traffic) -> Iterator[Sample]:
        """What ``GET /metrics`` says, with the traffic of other connections beside its own."""

    def publish_model(self, manifest: ModelManifest) -> None:
        """Publish (retained, and again after every reconnect) a model."""

    def withdraw_model(self, manifest: ModelManifest) -> None:
        """Take a model back."""

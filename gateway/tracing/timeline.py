"""What a traced request goes through: as its gateway sees it, and as its stages tell. Pure.

Knows nothing of OpenTelemetry: `gateway.tracing.spans` makes spans of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from broker.events import StageTimes
from broker.plan import Replica

REPORT_SECONDS: Final = 5.0
"""How long after a request's end its stages may tell: they may be computing something long."""


@dataclass(slots=True)
class Attempt:
    """One try of a request; times are the gateway's.

    Attributes:
        number: As on the bus; 0 before `Open`.
        prefill, decode: Replicas that it was opened at.
        cached_tokens: Leading positions of the prompt that were not computed.
        token_at: When its first token came.
        is_lost: Whether the request was queued again after it.
        told: What stages took, by replica and index.
    """

    queued_at: float
    number: int = 0
    prefill: Replica | None = None
    decode: Replica | None = None
    cached_tokens: int = 0
    opened_at: float | None = None
    token_at: float | None = None
    ended_at: float | None = None
    is_lost: bool = False
    told: dict[tuple[str, int], StageTimes] = field(default_factory=dict)

    def stages(self) -> Iterator[tuple[str, int, str]]:
        """Yield replica, index and device of each stage."""
        replicas = {r.id: r for r in (self.prefill, self.decode) if r is not None}
        for replica in replicas.values():
            for index, stage in enumerate(replica.stages):
                yield replica.id, index, stage.device

    @property
    def is_told(self) -> bool:
        """Whether every stage has said what it took."""
        return all((replica, index) in self.told for replica, index, _ in self.stages())


@dataclass(slots=True)
class Timeline:
    """One traced request.

    Attributes:
        traceparent: For its stages; what it names is the request's own span.
        began_at: When the request came in, before its prompt was prepared.
        span: What the tracer knows it by.
        attempts: The last one is the present one.
        num_tokens: Of the answer, as far as they came here.
        error: Type of what the request failed with.
        state: ``finished``, ``failed`` or ``cancelled``.
    """

    traceparent: str
    began_at: float
    span: object = None
    attempts: list[Attempt] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None
    state: str | None = None

    # --- what the gateway sees -----------------------------------------------------------------

    def submitted(self, now: float) -> None:
        """It waits for its turn."""
        self.attempts.append(Attempt(now))

    def opened(
        self, number: int, prefill: Replica, decode: Replica, cached_tokens: int, now: float
    ) -> None:
        """All room is granted, and `Open` goes out."""
        attempt = self.attempts[-1]
        attempt.number, attempt.prefill, attempt.decode = number, prefill, decode
        attempt.cached_tokens, attempt.opened_at = cached_tokens, now

    def token(self, finish_reason: str | None, now: float) -> None:
        """The next token came."""
        self.num_tokens += 1
        self.finish_reason = finish_reason
        if self.attempts[-1].token_at is None:
            self.attempts[-1].token_at = now

    def lost(self, now: float) -> None:
        """The attempt is over, and the request waits again; one that never began goes on."""
        attempt = self.attempts[-1]
        if attempt.opened_at is not None:
            attempt.ended_at, attempt.is_lost = now, True
            self.attempts.append(Attempt(now))

    def ended(self, state: str, now: float) -> None:
        """The request is over."""
        self.attempts[-1].ended_at = now
        self.state = state

    # --- what stages tell ----------------------------------------------------------------------

    def tell(self, sender: str, times: StageTimes) -> bool:
        """Take in what a stage took; False if ``sender`` does not hold it in that attempt."""
        for attempt in self.attempts:
            place = times.replica, times.stage, sender
            if attempt.number == times.attempt and place in attempt.stages():
                attempt.told[times.replica, times.stage] = times
                return True
        return False

    def is_due(self, now: float) -> bool:
        """Whether the request is over, and no stage is waited for any more."""
        last = self.attempts[-1]
        if last.ended_at is None:
            return False
        return now - last.ended_at >= REPORT_SECONDS or all(a.is_told for a in self.attempts)

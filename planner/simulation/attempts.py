"""A request's life in the simulator: what lasts over its attempts, and one attempt."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from math import nan
from typing import TYPE_CHECKING

from planner.simulation.metrics import Record
from planner.simulation.scenario import KvReservation, SimRequest

if TYPE_CHECKING:
    from planner.simulation.ledger import Ledger
    from planner.simulation.network import Transfer


@dataclass(slots=True, eq=False)
class Life:
    """What is remembered of a request, in seconds since the start; NaN: did not happen.

    Attributes:
        prefill_start: Of the first attempt, as `first_token` and `decode_start`.
        prefill_seconds: From the first chunk to the last, over all attempts that got there.
        prefill_tokens: Positions of these prompts.
        decode_seconds: Over all attempts.
        decode_tokens: Over all attempts; with one for each prefill, all that was generated.
        is_refused: No replica can ever hold it.
    """

    index: int
    request: SimRequest
    attempts: int = 0
    generated_tokens: int = 0
    prefill_start: float = nan
    first_token: float = nan
    decode_start: float = nan
    finish: float = nan
    prefill_seconds: float = 0.0
    prefill_tokens: int = 0
    decode_seconds: float = 0.0
    decode_tokens: int = 0
    prefill_replica: str = ""
    decode_replica: str = ""
    is_refused: bool = False

    def next_attempt(self, reservation: KvReservation) -> Attempt:
        """Return a fresh attempt: prompt and tokens so far are prefilled (again)."""
        self.attempts += 1
        prompt = self.request.prompt_tokens + self.generated_tokens
        left = self.request.answer_tokens - self.generated_tokens
        whole = reservation is KvReservation.WHOLE
        return Attempt(
            life=self,
            prompt_tokens=prompt,
            answer_tokens=left,
            reserved_tokens=prompt + left if whole else prompt + 1,
        )

    def record(self) -> Record:
        """Return what the run leaves of it."""
        return Record(
            arrival=self.request.arrival_seconds,
            prompt_tokens=self.request.prompt_tokens,
            answer_tokens=self.request.answer_tokens,
            prefill_start=self.prefill_start,
            first_token=self.first_token,
            decode_start=self.decode_start,
            finish=self.finish,
            prefill_seconds=self.prefill_seconds,
            prefill_tokens=self.prefill_tokens,
            decode_seconds=self.decode_seconds,
            decode_tokens=self.decode_tokens,
            generated_tokens=self.generated_tokens,
            attempts=self.attempts,
            prefill_replica=self.prefill_replica,
            decode_replica=self.decode_replica,
            is_refused=self.is_refused,
        )


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt at a request.

    Attributes:
        answer_tokens: Still to generate, the first of them by prefill.
        reserved_tokens: KV positions to reserve where it decodes.
        prefill: Where its prompt is, until its KV has left.
        decode: Where it decodes, or will.
        position: Prompt positions through prefill.
        prefill_held: KV positions held where it is prefilled only.
        decode_held: KV positions held where it decodes.
        is_asked: Whether its KV has asked for memory where it decodes.
        is_overlapped: Whether a part of it left while prefill ran.
        sent_share: Share of the prompt's KV on its way or arrived.
        start_round: Round of the decode replica in which it began to decode.
        is_over: Finished, or another attempt has taken over.
    """

    life: Life
    prompt_tokens: int
    answer_tokens: int
    reserved_tokens: int
    prefill: Ledger | None = None
    decode: Ledger | None = None
    position: int = 0
    prefill_start: float = nan
    is_prefilled: bool = False
    prefill_held: int = 0
    decode_held: int = 0
    is_asked: bool = False
    is_overlapped: bool = False
    sent_share: float = 0.0
    transfers: list[Transfer[Attempt]] = field(default_factory=list)
    start_round: int = 0
    decode_start: float = nan
    is_over: bool = False


class Step(Enum):
    """What an engine reports of an attempt."""

    STARTED = auto()
    FIRST_CHUNK = auto()
    PREFILLED = auto()
    FINISHED = auto()
    EVICTED = auto()

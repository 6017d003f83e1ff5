"""What nodes tell gateways: grants, tokens, losses. Frames on the wire, like `broker.work`."""

from __future__ import annotations

from enum import StrEnum
from math import isfinite

from msgspec import Struct

from broker.work import Data, RequestData, RequestKey, ReserveKind


class GrantState(StrEnum):
    """A master's answer to `Reserve`."""

    GRANTED = "granted"
    QUEUED = "queued"
    REFUSED = "refused"


class Granted(RequestData, frozen=True, tag="granted"):
    """Answer to `Reserve`; sent again when a queued one is granted.

    Attributes:
        expires_seconds: The grant is void when no `Open` came by then.
        kv_credit_bytes: Initial credit of each KV stream into the replica.
        free_tokens: KV room of the replica after this grant.
        free_slots: How many more of the asked kind its slots allow after this grant.
        held_tokens: Leading positions of the prompt whose KV the replica has kept; since 1.1.
    """

    replica: str
    kind: ReserveKind
    state: GrantState
    reason: str = ""
    expires_seconds: float = 10.0
    kv_credit_bytes: int = 0
    free_tokens: int = 0
    free_slots: int = 0
    held_tokens: int = 0


class Opened(RequestData, frozen=True, tag="opened"):
    """A stage has the request; the gateway repeats `Open` until it hears this."""

    replica: str
    stage: int


class Waiting(RequestData, frozen=True, tag="waiting"):
    """Decode master -> gateway: all is here, and the request waits for a row.

    Said when it begins to wait and every few seconds after that: a request that waits is
    silent, and not lost. Prefill is over for it.
    """


class Logprobs(Struct, frozen=True, array_like=True):
    """Log probabilities at one position, of the model itself: before bias and penalties.

    Attributes:
        chosen: Of the token that was chosen.
        top: The most probable tokens and theirs, largest first; of equals the lowest id first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


class TokenRow(Struct, frozen=True, array_like=True):
    """One token of one request; the gateway accepts (current attempt, next index) only."""

    request_id: str
    attempt: int
    index: int
    token_id: int
    finish_reason: str | None = None
    logprobs: Logprobs | None = None

    @property
    def key(self) -> RequestKey:
        """The request and attempt as one value."""
        return RequestKey(self.request_id, self.attempt)


class Tokens(Data, frozen=True, tag="tokens"):
    """Last stage -> gateway: one step's tokens of that gateway's requests."""

    rows: list[TokenRow]


class LossKind(StrEnum):
    """Why an attempt ended at the nodes."""

    STALLED = "stalled"
    """No answer after n repeats: queue again."""
    PREEMPTED = "preempted"
    """KV blocks ran out, the youngest goes: queue again."""
    FAILED = "failed"
    """The forward pass raised on this row: the request fails."""
    UNCACHED = "uncached"
    """A stage has not kept what the grant said: queue again, to be computed from its beginning.
    Since 1.1; said only to gateways that sent a `broker.prefix.Prefix`."""


class Lost(RequestData, frozen=True, tag="lost"):
    """Master -> gateway: this attempt is over here."""

    kind: LossKind
    reason: str


def _check_seconds(*durations: float) -> None:
    """Raise ValueError for what cannot be the length of a time."""
    if not all(isfinite(each) and each >= 0 for each in durations):
        raise ValueError(f"no lengths of time: {durations}")


class Spell(Struct, frozen=True, array_like=True):
    """What one phase of a request was at a stage, by the stage's own clock.

    Attributes:
        seconds: Of decode, the sum over all steps: from the row's arrival until its result left.
            Of prefill, the same of the prompt's last chunk; at the first stage from `Open` on.
        computing_seconds: Those in which its chunks or groups were computed; pauses of a chunk for
            decode groups included.
        count: Chunks, or steps.
    """

    seconds: float = 0.0
    computing_seconds: float = 0.0
    count: int = 0

    def __post_init__(self) -> None:
        _check_seconds(self.seconds, self.computing_seconds)


class KvArrival(Struct, frozen=True, array_like=True):
    """KV that a stage got of a request: bytes, and seconds from its first chunk to its last."""

    num_bytes: int
    seconds: float

    def __post_init__(self) -> None:
        _check_seconds(self.seconds)


class StageTimes(RequestData, frozen=True, tag="stage_times"):
    """Stage -> gateway, where an attempt ends there: what it took, for the request's trace.

    Since 1.3; said only of requests whose `Open` has a ``traceparent``.

    Attributes:
        kv: None where no KV came.
        handover_seconds: At a decode master, from the first token's arrival until all KV was
            there.
        waiting_seconds: There, from then until the request got a row.
    """

    replica: str
    stage: int
    prefill: Spell = Spell()
    decode: Spell = Spell()
    kv: KvArrival | None = None
    handover_seconds: float = 0.0
    waiting_seconds: float = 0.0

    def __post_init__(self) -> None:
        _check_seconds(self.handover_seconds, self.waiting_seconds)


Event = Granted | Opened | Waiting | Tokens | Lost | StageTimes

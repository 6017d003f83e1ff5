"""What nodes tell gateways: grants, tokens, losses. Frames on the wire, like `broker.work`."""

from __future__ import annotations

from enum import StrEnum

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


Event = Granted | Opened | Waiting | Tokens | Lost

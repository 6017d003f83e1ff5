"""Data messages: requests, activations, KV transfer, tokens. Frames on the wire.

A frame is a header (one of these structs) and, for some, raw tensor bytes; see
`broker.codec`. Every message names ``request_id`` and ``attempt``; delivery is promised by
positions and repeats (design, section 3), never by QoS. Nothing here does I/O.
"""

from __future__ import annotations

import math
from enum import StrEnum

from msgspec import Struct, field

from broker.plan import LayerRange
from broker.prefix import Prefix

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


class TensorMeta(Struct, frozen=True, array_like=True):
    """Shape and element type of the bytes behind a header, row-major, little-endian."""

    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in ITEMSIZE:
            raise ValueError(f"unknown dtype {self.dtype!r}")
        if any(n < 0 for n in self.shape):
            raise ValueError(f"negative size in shape {self.shape}")

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor must have."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


class RequestKey(Struct, frozen=True, array_like=True):
    """A request and which try of it; older tries are dropped everywhere."""

    request_id: str
    attempt: int


class Data(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of headers on ``work``, ``kv``, ``credit`` and ``events``."""


class RequestData(Data, frozen=True, kw_only=True):
    """Base of headers about one request."""

    request_id: str
    attempt: int

    @property
    def key(self) -> RequestKey:
        """The request and attempt as one value."""
        return RequestKey(self.request_id, self.attempt)


class Sampling(Struct, frozen=True, kw_only=True):
    """How tokens are chosen. Sampler state is a function of this and the ids so far.

    Attributes:
        temperature: 0 means greedy.
        top_k: 0 means off.
        seed: Drawn by the gateway when the client gave none.
        choice_index: Which of ``n`` choices this is; part of the noise.
        logit_bias: Token id to what is added to its logit.
        eos_token_ids: End the answer, unless ``ignore_eos``.
        min_tokens: Tokens before which no EOS is chosen.
        top_logprobs: How many of the most probable tokens are told, with their log
            probabilities, beside each chosen one; None: nothing is told.
        grammar: What the answer's text must be, in the dialect of Lark that llguidance reads;
            "": anything. An end token is chosen only where the text is complete by it. A node
            of an earlier version of the contract would ignore it, see `GRAMMAR_VERSION`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    choice_index: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    top_logprobs: int | None = None
    grammar: str = ""


# --- gateway -> stages, on `work` -------------------------------------------------------


class ReserveKind(StrEnum):
    """Which phase of the request the KV room is for; both in one replica is one grant."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


class Reserve(RequestData, frozen=True, tag="reserve"):
    """Ask a master for KV room. Idempotent: the same key gets the same answer again.

    Attributes:
        known_tokens: Prompt plus tokens generated so far.
        max_tokens: Tokens that may still be generated.
        queue_seconds: How long the master may keep it queued.
        prefix: Of the prompt, where KV of an earlier one may be used; since 1.1.
    """

    gateway: str
    kind: ReserveKind
    known_tokens: int
    max_tokens: int
    queue_seconds: float = 60.0
    prefix: Prefix | None = None

    def __post_init__(self) -> None:
        if self.known_tokens < 1 or self.max_tokens < 0:
            raise ValueError("a reservation is for at least one known token")


class Open(RequestData, frozen=True, tag="open"):
    """Begin a request at every stage of both replicas; stages answer `Opened`.

    Attributes:
        prompt_ids: Empty for stages that are neither first nor last.
        num_prompt_tokens: Length of the prompt, also where ``prompt_ids`` is empty.
        generated_ids: Tokens so far, when this continues after a failure.
        num_generated_tokens: Their number, also where ``generated_ids`` is empty.
        max_tokens: Tokens the whole answer may have, those generated so far included.
        kv_credit_bytes: Initial KV credit of each pair of prefill and decode stage.
        prefix: Of the prompt, where stages may keep its KV for later ones; since 1.1, as are
            the next two.
        cached_tokens: Leading positions that the stages of the prefill replica have kept and
            do not compute, by its master's grant; whole chunks.
        held_tokens: Leading positions that those of another decode replica have kept, so that
            they are not sent.
        traceparent: The trace that the request is part of, as W3C Trace Context writes it; None:
            of none. With one, each stage says `broker.events.StageTimes` at its end; since 1.3.
    """

    gateway: str
    prefill_replica: str
    decode_replica: str
    num_prompt_tokens: int
    num_generated_tokens: int
    max_tokens: int
    sampling: Sampling
    prompt_ids: tuple[int, ...] = ()
    generated_ids: tuple[int, ...] = ()
    kv_credit_bytes: int = 0
    prefix: Prefix | None = None
    cached_tokens: int = 0
    held_tokens: int = 0
    traceparent: str | None = None

    def __post_init__(self) -> None:
        if self.num_prompt_tokens < 1:
            raise ValueError("a prompt has at least one token")
        if self.num_generated_tokens < 0 or self.max_tokens < 1:
            raise ValueError("an answer has at least one token, and never fewer than none so far")
        if self.prompt_ids and len(self.prompt_ids) != self.num_prompt_tokens:
            raise ValueError("prompt_ids does not have num_prompt_tokens ids")
        if self.generated_ids and len(self.generated_ids) != self.num_generated_tokens:
            raise ValueError("generated_ids does not have num_generated_tokens ids")
        whole = 0 if self.prefix is None else self.prefix.num_tokens
        if whole > self.num_prompt_tokens:
            raise ValueError("prefix is longer than the prompt")
        for kept in (self.cached_tokens, self.held_tokens):
            # The last known position is computed in any case: the next token follows from it.
            if not 0 <= kept <= min(whole, self.known_tokens - 1):
                raise ValueError(f"{kept} positions are kept of a beginning of {whole}")

    @property
    def known_tokens(self) -> int:
        """Prompt plus tokens generated so far."""
        return self.num_prompt_tokens + self.num_generated_tokens


class Release(RequestData, frozen=True, tag="release"):
    """Free everything of this attempt. Gateway -> any stage; master -> its stages."""

    reason: str = ""


class Resend(RequestData, frozen=True, tag="resend"):
    """Gateway -> last stage of the decode replica: token events from ``index`` on, again."""

    gateway: str
    index: int


# --- stage -> stage, on `work` -----------------------------------------------------------


class Forward(RequestData, frozen=True, tag="forward"):
    """Hidden states of one prefill chunk; tensor of shape (num_rows, hidden_size)."""

    start_position: int
    tensor: TensorMeta


class PrefillProgress(RequestData, frozen=True, tag="prefill_progress"):
    """Last prefill stage -> prefill master: the last stage's KV length.

    With ``is_preparing`` the token comes as soon as its grammar is there: silence is no loss.
    """

    end_position: int
    is_preparing: bool = False


class FirstToken(RequestData, frozen=True, tag="first_token"):
    """Last prefill stage -> decode master: the token that prefill sampled.

    Attributes:
        position: Absolute position of the token, which is the number of known tokens.
        finish_reason: Set when the answer ends with this token already.
    """

    position: int
    token_id: int
    finish_reason: str | None = None


class KvComplete(RequestData, frozen=True, tag="kv_complete"):
    """Decode stage -> decode master: every layer has every position."""

    stage: int


class HandedOver(RequestData, frozen=True, tag="handed_over"):
    """Decode master -> prefill master: KV and token arrived, the copy may be freed.

    With ``complete`` false only the token did: the decode side is alive and awaits KV.
    """

    complete: bool = True


class StepRow(Struct, frozen=True, array_like=True):
    """One request's row in a decode group.

    Rows of one request that follow each other at consecutive positions are a run: the first is
    its newest token, the others are proposed (decision 0027). A stage may run fewer of those.

    Attributes:
        position: Where this row's KV goes; the fence of the step.
        token_id: The row's input token.
    """

    request_id: str
    attempt: int
    position: int
    token_id: int

    @property
    def key(self) -> RequestKey:
        """The request and attempt as one value."""
        return RequestKey(self.request_id, self.attempt)


class Step(Data, frozen=True, tag="step"):
    """A decode group on its way round the ring; tensor of shape (len(rows), hidden_size)."""

    group: int
    rows: list[StepRow]
    tensor: TensorMeta


class StepResult(Struct, frozen=True, array_like=True):
    """What the last stage chose for one row; ``position`` is the row's, not the token's.

    A run has a result for its first row, and for each further one whose id was chosen.

    Attributes:
        proposed_ids: Beside the last result of a run: what may come after its token.
    """

    request_id: str
    attempt: int
    position: int
    token_id: int
    finish_reason: str | None = None
    proposed_ids: tuple[int, ...] = ()

    @property
    def key(self) -> RequestKey:
        """The request and attempt as one value."""
        return RequestKey(self.request_id, self.attempt)


class StepDone(Data, frozen=True, tag="step_done"):
    """Last decode stage -> decode master: the tokens of a group."""

    group: int
    results: list[StepResult]


class Repeat(RequestData, frozen=True, tag="repeat"):
    """A stage misses data: the sender repeats its stored results from ``position`` on.

    From a master to its last stage it asks for the result of prefill again.
    """

    position: int


class RowFailed(RequestData, frozen=True, tag="row_failed"):
    """A stage -> its master: the forward pass of this row raised; the request ends.

    With ``retry`` the stage could not go on for a reason of its own (a KV stream stands
    still, no room): the request is queued again. With ``uncached`` (since 1.1) it has not kept
    what `Open` says: the request is queued again, to be computed from its beginning.
    """

    error: str
    retry: bool = False
    uncached: bool = False


class Live(Data, frozen=True, tag="live"):
    """Master -> its stages every 5 s: what still lives; others are freed after 15 s."""

    requests: list[RequestKey]


Work = (
    Reserve
    | Open
    | Release
    | Resend
    | Forward
    | PrefillProgress
    | FirstToken
    | KvComplete
    | HandedOver
    | Step
    | StepDone
    | Repeat
    | RowFailed
    | Live
)

# --- KV transfer, on `kv` and `credit` ---------------------------------------------------


class KvChunk(RequestData, frozen=True, tag="kv_chunk"):
    """KV of some layers and positions; tensor (layers, 2, positions, kv_heads, head_dim).

    Attributes:
        offset: Bytes of this stream (one sender stage, one receiver stage) before the chunk.
        total: Bytes that the whole stream will have.
        checksum: CRC-32 of the tensor bytes.
    """

    layers: LayerRange
    position: int
    num_positions: int
    offset: int
    total: int
    checksum: int
    tensor: TensorMeta


class KvCredit(RequestData, frozen=True, tag="kv_credit"):
    """Decode stage -> prefill stage, cumulative byte offsets of one stream.

    Attributes:
        received: All bytes below this offset arrived.
        credit: The sender may send bytes below this offset.
    """

    received: int
    credit: int

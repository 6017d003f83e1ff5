"""What a stage remembers of requests: open ones, and for a while those that ended. Pure.

A request exists at a stage only between `Open` and `Release`. Afterwards the pair of request
and attempt is remembered, so that late messages are dropped, and the last stage keeps the
tokens, so that a gateway that missed the end can ask for it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from broker.events import Logprobs, TokenRow
from broker.work import Open, RequestKey, StepResult
from nodes.lookup import PromptLookup
from nodes.transfer import KvReceiver, KvSender

if TYPE_CHECKING:
    from nodes.grammar import Grammar


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A prefill chunk's output, kept until the request leaves prefill."""

    start: int
    end: int
    output: Any


@dataclass(slots=True)
class StageRequest:
    """One attempt of one request at one stage.

    Attributes:
        named_at: When the master last named it (`Live`), or when it was opened.
        chunks: Outputs of prefill chunks, for repeats.
        last_position: Position of the first row of the last step that ran here; outputs of its
            rows are in ``last_output``, (rows, hidden_size), and what the last stage chose in
            ``last_results``.
        lookup: At the last stage, where its tokens stood before; None before decode.
        generated: At the last stage, all tokens of the answer so far.
        logprobs: Of the tokens that were chosen here, by index, where they were asked for.
        asked_at: When a repeat was last asked for, so that a burst asks once.
        grammar: At the last stage, what the answer must be; None: anything.
        is_held_up: What comes next waits for the grammar.
    """

    open: Open
    named_at: float
    chunks: list[StoredChunk] = field(default_factory=list)
    last_position: int = -1
    last_output: Any = None
    last_results: list[StepResult] = field(default_factory=list)
    lookup: PromptLookup | None = None
    generated: list[int] = field(default_factory=list)
    logprobs: dict[int, Logprobs] = field(default_factory=dict)
    finish_reason: str | None = None
    senders: dict[int, KvSender] = field(default_factory=dict)
    receiver: KvReceiver | None = None
    asked_at: float = -1.0
    grammar: Future[Grammar] | None = None
    is_held_up: bool = False

    def __post_init__(self) -> None:
        self.generated = list(self.open.generated_ids)

    @property
    def can_choose(self) -> bool:
        """Whether its grammar, if it has one, is there."""
        return self.grammar is None or self.grammar.done()

    def allowed(self, vocab_size: int) -> NDArray[np.bool_] | None:
        """Return the tokens that may come next by the grammar; None: all.

        Raises:
            Exception: The grammar could not be made, or does not lead here.
        """
        if self.grammar is None:
            return None
        return self.grammar.result(timeout=0).allowed(self.generated, vocab_size)

    def propose(self, most: int) -> tuple[int, ...]:
        """Return ids that may follow the answer so far, ``most`` or fewer; at the last stage.

        A step chooses one token beyond what it carries, so the last one is never proposed.
        """
        most = min(most, self.open.max_tokens - len(self.generated) - 1)
        if most <= 0:
            return ()
        if self.lookup is None:
            self.lookup = PromptLookup()
            self.lookup.extend(self.open.prompt_ids)
        self.lookup.extend(self.generated[len(self.lookup) - self.open.num_prompt_tokens :])
        return self.lookup.propose(most)

    def finish_after(self, token_id: int) -> str | None:
        """Return why the answer ends with ``token_id``, already in ``generated``, or None."""
        sampling = self.open.sampling
        is_eos = token_id in sampling.eos_token_ids and not sampling.ignore_eos
        if is_eos and len(self.generated) > sampling.min_tokens:
            return "stop"
        if len(self.generated) >= self.open.max_tokens:
            return "length"
        return None


@dataclass(slots=True)
class EndedRequest:
    """The tokens of a request that ended here."""

    open: Open
    generated: list[int]
    logprobs: dict[int, Logprobs]
    finish_reason: str | None
    ended_at: float


def token_row(request: StageRequest | EndedRequest, index: int) -> TokenRow:
    """Return what the gateway is told of token ``index`` of an answer."""
    is_last = index + 1 == len(request.generated)
    return TokenRow(
        request.open.request_id,
        request.open.attempt,
        index,
        request.generated[index],
        request.finish_reason if is_last else None,
        request.logprobs.get(index),
    )


class RequestTable:
    """Open requests by key, and the memory of ended ones."""

    def __init__(self, remember_seconds: float) -> None:
        self._remember_seconds = remember_seconds
        self._open: dict[RequestKey, StageRequest] = {}
        self._ended: dict[RequestKey, EndedRequest] = {}
        self._newest: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[StageRequest]:
        return iter(list(self._open.values()))

    def get(self, key: RequestKey) -> StageRequest | None:
        """Return the open request, or None."""
        return self._open.get(key)

    def is_stale(self, key: RequestKey) -> bool:
        """Whether this attempt ended here, or a newer one began."""
        return key in self._ended or key.attempt < self._newest.get(key.request_id, 0)

    def older_attempts(self, key: RequestKey) -> list[RequestKey]:
        """Return open attempts of the same request that this one replaces."""
        return [k for k in self._open if k.request_id == key.request_id and k.attempt < key.attempt]

    def add(self, request: StageRequest) -> None:
        """A request was opened."""
        key = request.open.key
        self._open[key] = request
        self._newest[key.request_id] = key.attempt

    def end(self, key: RequestKey, now: float) -> StageRequest | None:
        """A request was released; return it if it was open.

        One that never was open is not remembered: its gateway gave a grant back and may ask
        again for the same attempt.
        """
        request = self._open.pop(key, None)
        if request is not None:
            self._ended[key] = EndedRequest(
                request.open, request.generated, request.logprobs, request.finish_reason, now
            )
        return request

    def ended(self, key: RequestKey) -> EndedRequest | None:
        """Return what is remembered of an ended request."""
        return self._ended.get(key)

    def forget_old(self, now: float) -> None:
        """Forget requests that ended long ago."""
        for key, entry in list(self._ended.items()):
            if now - entry.ended_at >= self._remember_seconds:
                del self._ended[key]
                if not any(k.request_id == key.request_id for k in (*self._open, *self._ended)):
                    self._newest.pop(key.request_id, None)

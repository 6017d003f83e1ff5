"""What one stage computes, by position: prefill chunks, replayed rows, decode groups.

Knows tensors and KV lengths; knows nothing of senders, topics or timers. An exception in a
forward pass fails only its rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from torch import Tensor

from broker.work import StepResult, StepRow
from nodes.executor import ByLayer, StageExecutor
from nodes.logprobs import logprobs_of
from nodes.requests import RequestTable, StageRequest, StoredChunk
from nodes.sampler import choose


@dataclass(frozen=True, slots=True)
class JobCost:
    """What a computation was, so that an emulated device can take its time.

    Attributes:
        rows: Rows of a decode group, or tokens of a prefill chunk.
        context: Mean KV length of the rows, or the chunk's end position.
        kinds: Of the blocks that ran, one for each.
        head_rows: Rows that went through the head and the sampler.
    """

    is_decode: bool
    rows: int
    context: int
    kinds: tuple[str, ...]
    embedding: bool
    head_rows: int


Clock = Callable[[], float]

FIRST_SLICE_SECONDS: Final = 0.05
"""A chunk's slice before any decode group has run here."""

_REMEMBERED_GROUPS: Final = 8


class ReleasedError(Exception):
    """The request of a chunk that paused is no longer open; what it computed goes."""


Pace = Callable[[JobCost], None]
"""Called with the cost after the computation and before its result leaves."""


@dataclass(slots=True)
class StepOutcome:
    """What became of a group's rows at this stage.

    Attributes:
        rows: Rows that have a result, in the group's order.
        hidden: (len(rows), hidden_size); None at the last stage.
        results: One per row at the last stage, else empty.
        failed: Rows whose forward pass raised, and what.
        dropped: Reasons for the rows that have neither.
    """

    rows: list[StepRow] = field(default_factory=list)
    hidden: Tensor | None = None
    results: list[StepResult] = field(default_factory=list)
    failed: list[tuple[StepRow, Exception]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


class StageCompute:
    """Runs chunks and groups on one executor and keeps their results for repeats."""

    def __init__(self, executor: StageExecutor, requests: RequestTable, pace: Pace) -> None:
        self.executor = executor
        self._requests = requests
        self._pace = pace
        self._group_seconds: deque[float] = deque(maxlen=_REMEMBERED_GROUPS)

    def chunk(
        self, request: StageRequest, start: int, hidden: Tensor | None, end: int, now: Clock
    ) -> ByLayer:
        """Run positions ``[start, end)``; ``hidden`` is None at the first stage.

        Pauses between layers whenever it took as long as a decode group, so that a long
        prompt makes running streams at most about half as fast.

        Returns:
            (end - start, hidden_size), also stored for repeats.

        Raises:
            ReleasedError: The request went while this paused.
        """
        opened = request.open
        executor = self.executor
        if hidden is None:
            ids = [*opened.prompt_ids, *opened.generated_ids][start:end]
            hidden = executor.embed(ids)
        # Positions after the prompt are computed as decode would, so that a continued answer
        # has the arithmetic of an undisturbed one.
        is_prompt = start < opened.num_prompt_tokens
        run = executor.prefill_by_layer if is_prompt else executor.replay_by_layer
        layers = run(opened.key, hidden, start)
        head_rows = int(executor.head and end == opened.known_tokens)
        cost = partial(JobCost, is_decode=False, rows=end - start, context=end)
        embedding, first, done, began = executor.embedding, 0, 0, now()
        while (output := _next(layers)) is None:
            done += 1
            # The shortest of late: one that the machine held up must not hold up others.
            if now() - began >= min(self._group_seconds, default=FIRST_SLICE_SECONDS):
                kinds = executor.kinds[first:done]
                self._pace(cost(kinds=kinds, embedding=embedding, head_rows=0))
                yield
                if self._requests.get(opened.key) is not request:
                    raise ReleasedError
                embedding, first, began = False, done, now()
        request.chunks.append(StoredChunk(start, end, output))
        kinds = executor.kinds[first:done]
        self._pace(cost(kinds=kinds, embedding=embedding, head_rows=head_rows))
        return output

    def first_token(self, request: StageRequest, hidden: Tensor) -> int:
        """Choose the token after the known ones from the last position's hidden state."""
        row = self.executor.logits(hidden[-1:])[0]
        return self._choose(request, row, request.open.known_tokens)

    def step(self, rows: Sequence[StepRow], hidden: Tensor | None, now: Clock) -> StepOutcome:
        """Run a decode group; ``hidden`` is None at the first stage.

        Rows at their KV length run; rows one behind it get their stored result; others are
        dropped: their master goes on without them or repeats them.
        """
        outcome = StepOutcome()
        to_run: list[int] = []
        has_result: list[int] = []
        for index, row in enumerate(rows):
            verdict = self._verdict(row)
            if verdict == "run":
                to_run.append(index)
            if verdict in ("run", "stored"):
                has_result.append(index)
            else:
                outcome.dropped.append(verdict)
        if to_run:
            failed = self._run_rows(
                [rows[i] for i in to_run], None if hidden is None else hidden[to_run], now
            )
            outcome.failed = [(rows[to_run[i]], error) for i, error in failed.items()]
            lost = {to_run[i] for i in failed}
            has_result = [i for i in has_result if i not in lost]
        outcome.rows = [rows[i] for i in has_result]
        requests = [self._open_request(row) for row in outcome.rows]
        if self.executor.head:
            outcome.results = [r.last_result for r in requests if r.last_result is not None]
        elif requests:
            outcome.hidden = torch.cat([r.last_output for r in requests])
        return outcome

    def _verdict(self, row: StepRow) -> str:
        request = self._requests.get(row.key)
        if request is None:
            return "unknown request"
        length = self.executor.length(row.key)
        if length == row.position:
            if request.receiver is not None and not request.receiver.is_complete:
                return "kv incomplete"
            if not request.can_choose:
                return "grammar not there yet"
            return "run" if self._learn_token(request, row) else "unknown token"
        if length == row.position + 1 and request.last_position == row.position:
            return "stored"
        return "old step" if length > row.position else "early step"

    def _learn_token(self, request: StageRequest, row: StepRow) -> bool:
        """At the last stage, take the row's input token into the answer so far."""
        if not self.executor.head:
            return True
        index = row.position - request.open.num_prompt_tokens
        if index == len(request.generated):
            request.generated.append(row.token_id)
        return 0 <= index < len(request.generated) and request.generated[index] == row.token_id

    def _run_rows(
        self, rows: list[StepRow], hidden: Tensor | None, now: Clock
    ) -> dict[int, Exception]:
        """Run rows together, or, if that raises, one by one; return errors by index."""
        began = now()
        try:
            output = self._decode(rows, hidden)
            logits = self.executor.logits(output) if self.executor.head else None
        except Exception as error:
            # The executor leaves every KV as it was, so the others can run again.
            if len(rows) == 1:
                return {0: error}
            alone = [None if hidden is None else hidden[i : i + 1] for i in range(len(rows))]
            errors = [self._run_rows([row], alone[i], now) for i, row in enumerate(rows)]
            return {i: error[0] for i, error in enumerate(errors) if error}
        # Before pacing: slices are paced as well.
        self._group_seconds.append(now() - began)
        failed: dict[int, Exception] = {}
        for index, row in enumerate(rows):
            request = self._open_request(row)
            request.chunks.clear()
            request.last_position = row.position
            request.last_output = output[index : index + 1]
            if logits is None:
                continue
            try:
                token = self._choose(request, logits[index], row.position + 1)
            except Exception as error:
                failed[index] = error
                continue
            request.last_result = StepResult(
                row.request_id, row.attempt, row.position, token, request.finish_reason
            )
        self._pace(
            JobCost(
                is_decode=True,
                rows=len(rows),
                context=sum(row.position + 1 for row in rows) // len(rows),
                kinds=self.executor.kinds,
                embedding=self.executor.embedding,
                head_rows=len(rows) if self.executor.head else 0,
            )
        )
        return failed

    def _decode(self, rows: list[StepRow], hidden: Tensor | None) -> Tensor:
        if hidden is None:
            hidden = self.executor.embed([row.token_id for row in rows])
        for row in rows:
            self.executor.reserve(row.key, row.position + 1)
        return self.executor.decode([row.key for row in rows], hidden)

    def _choose(self, request: StageRequest, logits: Tensor, position: int) -> int:
        opened = request.open
        sampling, index = opened.sampling, len(request.generated)
        token = choose(
            logits,
            sampling,
            opened.prompt_ids,
            request.generated,
            position,
            request.allowed(len(logits)),
        )
        if sampling.top_logprobs is not None:
            request.logprobs[index] = logprobs_of(logits, token, sampling.top_logprobs)
        request.generated.append(token)
        request.finish_reason = request.finish_after(token)
        return token

    def _open_request(self, row: StepRow) -> StageRequest:
        request = self._requests.get(row.key)
        assert request is not None, "rows that run or are stored belong to open requests"
        return request


def _next(computation: ByLayer) -> Tensor | None:
    """Run to the next pause, or return the result."""
    try:
        next(computation)
    except StopIteration as stop:
        result: Tensor = stop.value
        return result
    return None

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
from msgspec.structs import replace
from torch import Tensor

from broker.work import RequestKey, StepResult, StepRow
from nodes.executor import ByLayer, StageExecutor
from nodes.logprobs import logprobs_of
from nodes.requests import RequestTable, StageRequest, StoredChunk
from nodes.runs import Run, runs_of
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
        results: At the last stage, of the rows whose id was chosen; else empty.
        failed: First rows of runs whose forward pass raised, and what.
        dropped: Reasons for the runs that have neither.
    """

    rows: list[StepRow] = field(default_factory=list)
    hidden: Tensor | None = None
    results: list[StepResult] = field(default_factory=list)
    failed: list[tuple[StepRow, Exception]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


class StageCompute:
    """Runs chunks and groups on one executor and keeps their results for repeats.

    Args:
        most_proposed: Ids that the last stage proposes for a request's next step.
    """

    def __init__(
        self, executor: StageExecutor, requests: RequestTable, pace: Pace, most_proposed: int
    ) -> None:
        self.executor = executor
        self._most_proposed = most_proposed
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

        Runs whose first row is new here run; the same one again gets its stored result; others
        are dropped: their master goes on without them or repeats them.
        """
        outcome = StepOutcome()
        to_run: list[Run] = []
        has_result: list[Run] = []
        for run in runs_of(rows, hidden):
            verdict = self._verdict(run.first)
            if verdict == "run":
                to_run.append(run)
            if verdict in ("run", "stored"):
                has_result.append(run)
            else:
                outcome.dropped.append(verdict)
        if to_run:
            failed = self._run(to_run, now)
            outcome.failed = [(r.first, failed[r.key]) for r in to_run if r.key in failed]
            has_result = [run for run in has_result if run.key not in failed]
        outputs: list[Tensor] = []
        for run in has_result:
            request = self._open_request(run.key)
            outcome.results += request.last_results
            # Fewer than asked, where proposed rows could not run.
            outcome.rows += run.rows[: len(request.last_output)]
            outputs.append(request.last_output[: len(run.rows)])
        if outputs and not self.executor.head:
            outcome.hidden = torch.cat(outputs)
        return outcome

    def _verdict(self, row: StepRow) -> str:
        """Return what becomes of a run that begins with ``row``.

        Each step of a request begins later than the one before it, which ran up to there or,
        with rows that were proposed and not chosen, beyond. So where it begins says which step it
        is, and where the KV is cut.
        """
        request = self._requests.get(row.key)
        if request is None:
            return "unknown request"
        if row.position < max(request.open.known_tokens, request.last_position):
            return "old step"
        if row.position == request.last_position:
            return "stored"
        if row.position > self.executor.length(row.key):
            return "early step"
        if request.receiver is not None and not request.receiver.is_complete:
            return "kv incomplete"
        if not request.can_choose:
            return "grammar not there yet"
        return "run" if self._learn_token(request, row) else "unknown token"

    def _learn_token(self, request: StageRequest, row: StepRow) -> bool:
        """At the last stage, take the row's input token into the answer so far."""
        if not self.executor.head:
            return True
        index = row.position - request.open.num_prompt_tokens
        if index == len(request.generated):
            request.generated.append(row.token_id)
        return 0 <= index < len(request.generated) and request.generated[index] == row.token_id

    def _run(self, runs: list[Run], now: Clock) -> dict[RequestKey, Exception]:
        """Run all together, or, if that raises, one by one; return errors by request."""
        began = now()
        try:
            output = self._decode(runs)
            logits = self.executor.logits(output) if self.executor.head else None
        except Exception as error:
            # The executor leaves every KV as it was, so the others can run again.
            if len(runs) > 1:
                alone = [self._run([run], now) for run in runs]
                return {key: error for errors in alone for key, error in errors.items()}
            (run,) = runs
            return self._run([run.without_proposed], now) if run.proposed else {run.key: error}
        # Before pacing: slices are paced as well.
        self._group_seconds.append(now() - began)
        failed: dict[RequestKey, Exception] = {}
        start = 0
        for run in runs:
            request = self._open_request(run.key)
            end = start + len(run.rows)
            request.chunks.clear()
            request.last_position = run.first.position
            request.last_output = output[start:end]
            if logits is not None:
                try:
                    request.last_results = self._choose_along(request, run, logits[start:end])
                except Exception as error:
                    request.last_results = []
                    failed[run.key] = error
            start = end
        num_rows = len(output)
        positions = sum(row.position + 1 for run in runs for row in run.rows)
        self._pace(
            JobCost(
                is_decode=True,
                rows=num_rows,
                context=positions // num_rows,
                kinds=self.executor.kinds,
                embedding=self.executor.embedding,
                head_rows=num_rows if self.executor.head else 0,
            )
        )
        return failed

    def _decode(self, runs: list[Run]) -> Tensor:
        executor = self.executor
        for run in runs:
            # What was proposed and not chosen goes.
            executor.set_length(run.key, run.first.position)
        rows = [row for run in runs for row in run.rows]
        hidden = [run.hidden for run in runs if run.hidden is not None]
        together = torch.cat(hidden) if hidden else executor.embed([row.token_id for row in rows])
        return executor.decode([row.key for row in rows], together)

    def _choose_along(self, request: StageRequest, run: Run, logits: Tensor) -> list[StepResult]:
        """Choose tokens in order, as long as what was proposed is what was chosen.

        Raises:
            Exception: None can be chosen after the run's first row. Where that is so after a later
                one, its row comes again as the first of the next step.
        """
        results: list[StepResult] = []
        for row, scores in zip(run.rows, logits, strict=True):
            if results and row.token_id != results[-1].token_id:
                break
            try:
                token = self._choose(request, scores, row.position + 1)
            except Exception:
                if not results:
                    raise
                break
            reason = request.finish_reason
            results.append(StepResult(row.request_id, row.attempt, row.position, token, reason))
            if reason is not None:
                return results
        proposed = request.propose(self._most_proposed)
        results[-1] = replace(results[-1], proposed_ids=proposed)
        return results

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

    def _open_request(self, key: RequestKey) -> StageRequest:
        request = self._requests.get(key)
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

"""The compute queue of one stage: prefill chunks and decode groups, and what they send.

Decode goes before prefill, with at most one slice of a prefill chunk between two groups: some
layers, which take about as long as a group. Results go to the next stage, or, at the last
one, to the master and the gateways.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import Final

from torch import Tensor

from broker.codec import Buffer
from broker.events import TokenRow, Tokens
from broker.work import (
    FirstToken,
    Forward,
    PrefillProgress,
    Repeat,
    RequestKey,
    RowFailed,
    Step,
    StepDone,
    StepResult,
    StepRow,
)
from nodes.compute import Clock, Pace, ReleasedError, StageCompute
from nodes.conductor import Conductor
from nodes.context import StageContext, ids
from nodes.groups import Group
from nodes.kv_cache import KvFullError
from nodes.outgoing import ToStage
from nodes.requests import StageRequest, token_row
from nodes.streams import KvStreams
from nodes.tensors import from_bytes, meta_of, to_bytes

logger = logging.getLogger(__name__)

_DONE: Final = object()


class StageJobs:
    """What a stage computes, in which order, and where the results go."""

    def __init__(
        self,
        context: StageContext,
        streams: KvStreams,
        conductor: Conductor | None,
        pace: Pace,
    ) -> None:
        self._context = context
        self._streams = streams
        self._conductor = conductor
        self._compute = StageCompute(
            context.executor, context.requests, pace, context.settings.most_proposed
        )
        self._chunks: deque[tuple[Forward, Buffer]] = deque()
        self._groups: deque[Group | tuple[Step, Buffer]] = deque()
        self._paused: Iterator[None] | None = None
        self._decoded_last = False

    @property
    def num_waiting(self) -> int:
        """Chunks and groups in the queue, and a chunk that paused."""
        return len(self._groups) + len(self._chunks) + (self._paused is not None)

    def add_chunk(self, message: Forward, data: Buffer, now: float) -> None:
        """Queue a prefill chunk from the stage before."""
        self._context.timing.chunk_came(message.key, now)
        self._chunks.append((message, data))

    def add_step(self, message: Step, data: Buffer, now: float) -> None:
        """Queue a decode group from the stage before."""
        self._context.timing.rows_came(message.rows, now)
        self._groups.append((message, data))

    def add_group(self, group: Group) -> None:
        """Queue a group at the master's own stage, for the first time or again.

        Rows that ran already have their stored result, so a repeat computes nothing.
        """
        if not any(queued is group for queued in self._groups):
            self._groups.append(group)

    def has_work(self) -> bool:
        """Whether `run_next` would compute something."""
        return bool(self._groups) or self._chunk_waits()

    def run_next(self, now: Clock) -> None:
        """Run one job: a group, or, if one just ran or none waits, a slice of a prefill chunk."""
        if self._groups and not (self._decoded_last and self._chunk_waits()):
            self._decoded_last = True
            self._run_group(self._groups.popleft(), now)
        elif self._chunk_waits():
            self._decoded_last = False
            chunk, self._paused = self._paused or self._begin_chunk(now), None
            if next(chunk, _DONE) is not _DONE:
                self._paused = chunk

    def send_stored(
        self, request: StageRequest, position: int, *, only_first: bool = False
    ) -> None:
        """Send stored prefill outputs from ``position`` on; the last stage reports instead."""
        if self._context.is_last:
            self._report_prefill(request)
            return
        for stored in request.chunks:
            if stored.start < position or (only_first and stored.start > position):
                continue
            meta = meta_of(stored.output)
            header = Forward(**ids(request.open.key), start_position=stored.start, tensor=meta)
            self._context.to_stage(self._context.index + 1, header, to_bytes(stored.output))

    def go_on(self, request: StageRequest) -> None:
        """Do what waited for the request's grammar, which is there now."""
        request.is_held_up = False
        if request.receiver is not None:
            self._streams.report_complete(request)
        elif request.chunks and self._ends_prefill(request, request.chunks[-1].end):
            try:
                self._compute.first_token(request, request.chunks[-1].output)
            except Exception as error:  # one bad request must not stop the stage
                self._fail(request.open.key, error)
                return
            self._report_prefill(request)

    # --- prefill -------------------------------------------------------------------------------

    def _chunk_waits(self) -> bool:
        return (
            self._paused is not None
            or bool(self._chunks)
            or (self._conductor is not None and self._conductor.next_chunk() is not None)
        )

    def _begin_chunk(self, now: Clock) -> Iterator[None]:
        if self._chunks:
            return self._run_forward(*self._chunks.popleft(), now)
        return self._run_first_chunk(now)

    def _run_first_chunk(self, now: Clock) -> Iterator[None]:
        assert self._conductor is not None, "only the master's stage begins chunks"
        chunk = self._conductor.next_chunk()
        assert chunk is not None, "only called when a chunk waits"
        opened, start, end = chunk
        request = self._context.requests.get(opened.key)
        if request is None:  # freed behind the master's back; it must not be offered again
            self._conductor.release(opened.key, now(), "not open at its own first stage")
            return
        yield from self._run_chunk(request, start, None, end, now)
        self._conductor.chunk_ran(opened.key, end, now())

    def _run_forward(self, message: Forward, data: Buffer, now: Clock) -> Iterator[None]:
        request = self._context.requests.get(message.key)
        if request is None:
            self._context.dropped["stale"] += 1
            return
        start, end = message.start_position, message.start_position + message.tensor.shape[0]
        length = self._context.executor.length(message.key)
        if start < length:
            self.send_stored(request, start, only_first=True)
        elif start > length:
            self._ask_repeat(request, length, now())
        elif self._is_on_grid(request, start, end):
            yield from self._run_chunk(request, start, from_bytes(data, message.tensor), end, now)
        else:
            self._context.dropped["chunk off the grid"] += 1

    def _is_on_grid(self, request: StageRequest, start: int, end: int) -> bool:
        prompt, known = request.open.num_prompt_tokens, request.open.known_tokens
        if start < prompt < end or end > known:
            return False
        return end - start <= self._context.executor.chunk_tokens

    def _run_chunk(
        self, request: StageRequest, start: int, hidden: Tensor | None, end: int, now: Clock
    ) -> Iterator[None]:
        timing = self._context.timing
        began = 0.0 if timing.is_idle else now()
        try:
            output = yield from self._compute.chunk(request, start, hidden, end, now)
            if self._ends_prefill(request, end) and request.can_choose:
                request.is_held_up = False
                self._compute.first_token(request, output)
        except ReleasedError:
            self._context.dropped["released"] += 1
            return
        except Exception as error:  # one bad request must not stop the stage
            self._fail(request.open.key, error)
            return
        if not timing.is_idle:
            timing.chunk_ran(request.open.key, began, now())
        self.send_stored(request, start, only_first=True)
        self._streams.produce(request, start, end, now())

    def _ends_prefill(self, request: StageRequest, end: int) -> bool:
        return self._context.is_last and end == request.open.known_tokens

    def _report_prefill(self, request: StageRequest) -> None:
        key, opened = request.open.key, request.open
        end = self._context.executor.length(key)
        waits = not request.can_choose
        progress = PrefillProgress(**ids(key), end_position=end, is_preparing=waits)
        self._context.to_stage(0, progress)
        index = opened.num_generated_tokens
        if len(request.generated) <= index:
            return
        row = token_row(request, index)
        self._context.to_gateway(opened.gateway, Tokens(rows=[row]))
        decode = self._context.decode_replica(request)
        header = FirstToken(
            **ids(key),
            position=opened.known_tokens,
            token_id=row.token_id,
            finish_reason=row.finish_reason,
        )
        self._context.out.append(ToStage(decode.id, 0, decode.stages[0].device, header))

    def _ask_repeat(self, request: StageRequest, position: int, now: float) -> None:
        # A burst of chunks behind a lost one asks once.
        if now - request.asked_at >= self._context.settings.timers.repeat / 4:
            request.asked_at = now
            header = Repeat(**ids(request.open.key), position=position)
            self._context.to_stage(self._context.index - 1, header)

    # --- decode --------------------------------------------------------------------------------

    def _run_group(self, group: Group | tuple[Step, Buffer], now: Clock) -> None:
        if isinstance(group, Group):
            rows = [row for row in group.rows if row.key in group.pending]
            self._run_step(group.number, rows, None, now)
        else:
            step, data = group
            self._run_step(step.group, step.rows, from_bytes(data, step.tensor), now)

    def _run_step(
        self, number: int, rows: list[StepRow], hidden: Tensor | None, now: Clock
    ) -> None:
        timing = self._context.timing
        began = 0.0 if timing.is_idle else now()
        outcome = self._compute.step(rows, hidden, now)
        if not timing.is_idle:
            timing.rows_ran(rows, began, now())
        self._context.dropped.update(outcome.dropped)
        for row, error in outcome.failed:
            self._fail(row.key, error)
        if outcome.hidden is not None:
            header = Step(group=number, rows=outcome.rows, tensor=meta_of(outcome.hidden))
            self._context.to_stage(self._context.index + 1, header, to_bytes(outcome.hidden))
        if outcome.results:
            self._context.to_stage(0, StepDone(group=number, results=outcome.results))
            self._send_tokens(outcome.results)

    def _send_tokens(self, results: list[StepResult]) -> None:
        rows: dict[str, list[TokenRow]] = {}
        for result in results:
            request = self._context.requests.get(result.key)
            assert request is not None, "rows with results belong to open requests"
            index = result.position + 1 - request.open.num_prompt_tokens
            rows.setdefault(request.open.gateway, []).append(token_row(request, index))
        for gateway, token_rows in rows.items():
            self._context.to_gateway(gateway, Tokens(rows=token_rows))

    def _fail(self, key: RequestKey, error: Exception) -> None:
        """Report a request that cannot go on; one that lacks KV room goes back to the queue."""
        lacks_room = isinstance(error, KvFullError)
        if lacks_room:
            logger.warning("%s: %s", key.request_id, error, extra={"request_id": key.request_id})
        else:
            said = {"request_id": key.request_id}
            logger.error("%s cannot go on", key.request_id, exc_info=error, extra=said)
        text = f"{type(error).__name__}: {error}"
        self._context.to_stage(0, RowFailed(**ids(key), error=text, retry=lacks_room))

"""One replica at work: chunks of prompts, rounds of decode, slots and memory.

The engine goes from boundary to boundary. Between two boundaries nothing that matters
changes, so a *span* of many rounds, or of all chunks of a prompt, is one event. A new row or
prompt cuts the span at the end of the round or chunk in progress, as in a real replica. The
engine knows nothing of routing, networks or other replicas; it reports steps of attempts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum, auto
from heapq import heapify, heappop, heappush
from math import inf, isnan
from typing import NamedTuple

from broker.placement import KV_BLOCK_TOKENS
from planner.simulation.attempts import Attempt, Step
from planner.simulation.ledger import Ledger
from planner.simulation.pace import pace_of
from planner.simulation.scenario import SimReplica


class _Span(Enum):
    IDLE = auto()
    PREFILL = auto()
    DECODE = auto()
    MIXED = auto()


class _Entry(NamedTuple):
    """A chunk of the current prompt: when it enters, what is then done, when it leaves."""

    start: float
    position: int
    free: tuple[float, ...]
    leaves: float


class Engine(Ledger):
    """A replica's state and work. It is a `routing.ReplicaState`.

    Args:
        replica: What it is.
        slowdowns: Factor of each stage's device now.
        mean_prompt_tokens: For which the planned prefill rate is stated.
        clock: Returns the time now.
        is_growing: Rows reserve what they have, not what they will need.
        stepwise: One round per event.

    Attributes:
        outbox: (step, when, attempt) since it was last emptied; some lie ahead.
        inbox: Attempts that wait for memory here before their KV is sent.
        timer_seconds: When `on_timer` is due; `version` grows whenever it is set.
        busy_seconds: Of each stage.
        is_retiring: Takes no new requests.
    """

    def __init__(
        self,
        replica: SimReplica,
        slowdowns: Sequence[float],
        mean_prompt_tokens: int,
        clock: Callable[[], float],
        *,
        is_growing: bool = False,
        stepwise: bool = False,
    ) -> None:
        super().__init__(replica, mean_prompt_tokens, is_growing)
        self.is_retiring = False
        self.inbox: deque[Attempt] = deque()
        self.outbox: list[tuple[Step, float, Attempt]] = []
        self.timer_seconds = inf
        self.version = 0
        self.busy_seconds = [0.0] * len(replica.stages)
        self._slowdowns = list(slowdowns)
        self._is_changed = False
        self._clock = clock
        self._stepwise = stepwise
        self._pace = pace_of(replica, tuple(slowdowns))
        self._prompts: deque[Attempt] = deque()
        self._ready: deque[Attempt] = deque()
        # (round in which it ends, index, attempt): a heap.
        self._rows: list[tuple[int, int, Attempt]] = []
        self._round = 0
        # Sum over rows of context - round, which rounds do not change.
        self._offsets = 0
        self._span = _Span.IDLE
        self._start = 0.0
        self._num_rounds = 0
        self._free = [0.0] * len(self._pace.delays)
        self._entries: list[_Entry] = []
        self._picked: list[tuple[Attempt, int]] = []

    # --- what routers see -------------------------------------------------------------------

    @property
    def num_active(self) -> int:
        """Requests that decode now."""
        return len(self._rows)

    @property
    def pending_prompt_tokens(self) -> int:
        """Prompt positions bound here and not through prefill."""
        if self._span is not _Span.PREFILL:
            return self._pending_tokens
        length = self.timer_seconds - self._start
        share = (self._clock() - self._start) / length if length > 0 else 1.0
        size = self._entries[-1].position - self._prompts[0].position
        return max(self._pending_tokens - int(min(share, 1.0) * size), 0)

    def prompt_seconds(self, num_tokens: int) -> float:
        """Return the planned time of a prompt that waits for nothing, beside its streams."""
        pace, rows = self.planned, len(self._rows)
        if not rows:
            return pace.prompt_seconds(num_tokens)
        chunks = pace.num_chunks(num_tokens)
        at_once = min(pace.groups(rows)[0], chunks)
        chunk = pace.chunk_seconds(pace.chunk_tokens(num_tokens, 0), 0)
        idle = [0.0] * len(chunk)
        context = self.replica.planned_context
        return chunks / at_once * pace.mixed_seconds(rows, context, [chunk] * at_once, idle)

    def generated_tokens(self) -> list[int]:
        """Return the tokens that each decoding request has, most first."""
        now = self._round + self._rounds_done(self._clock())
        return sorted((now - attempt.start_round for _, _, attempt in self._rows), reverse=True)

    # --- what the simulator does ------------------------------------------------------------

    def enqueue(self, attempt: Attempt) -> None:
        """Put a prompt into the queue."""
        self._prompts.append(attempt)
        self.wake()

    def hand_over(self, attempt: Attempt) -> None:
        """Forget a prompt whose KV is where it decodes."""
        self.forget_prompt(attempt)
        self.wake()

    def receive(self, attempt: Attempt) -> None:
        """Let a request decode whose KV is complete here."""
        self._ready.append(attempt)
        self.wake()

    def slow_down(self, device: str, factor: float) -> None:
        """Change a device's speed from the next boundary on."""
        for index, stage in enumerate(self.replica.stages):
            if stage.device == device:
                self._slowdowns[index] = factor
                self._is_changed = True
        if self._is_changed:
            self.wake()

    def drop(self, attempt: Attempt) -> None:
        """Take out an attempt that does not decode yet; its ``is_over`` is already true.

        A chunk that it is in goes on to its end.
        """
        if attempt.decode is self:
            for queue in (self._ready, self.inbox):
                if attempt in queue:
                    queue.remove(attempt)
            self.forget_decode(attempt)
        if attempt.prefill is self:
            self.forget_prompt(attempt)
        self.wake()

    def fail(self) -> None:
        """Stop for good: rows keep the tokens of complete rounds."""
        now = self._clock()
        self._round += self._rounds_done(now)
        for _, _, attempt in self._rows:
            self._end_row(attempt, now)
        self._rows = []
        self._prompts.clear()
        self._ready.clear()
        self.inbox.clear()
        self.outbox.clear()
        self._span = _Span.IDLE
        self._set_timer(inf)

    # --- spans ------------------------------------------------------------------------------

    def wake(self) -> None:
        """Look whether something that has changed starts work or cuts the present span."""
        now = self._clock()
        if self._span is _Span.IDLE:
            self._begin(now)
        elif self._span is _Span.DECODE:
            has_row = bool(self._ready) and len(self._rows) < self.slots
            if has_row or self._prompts or self._is_changed:
                self._cut_rounds(now)
        elif self._span is _Span.PREFILL and (self._ready or self._is_changed):
            self._cut_chunks(now)

    def on_timer(self) -> None:
        """End the span at its boundary and begin the next one."""
        now = self._clock()
        if self._span is _Span.PREFILL:
            self._end_chunks()
        elif self._span is not _Span.IDLE:
            self._end_rounds(now)
        self._begin(now)

    def _set_timer(self, at: float) -> None:
        self.timer_seconds = at
        self.version += 1

    def _begin(self, now: float) -> None:
        if self._is_changed:
            self._pace = pace_of(self.replica, tuple(self._slowdowns))
            self._is_changed = False
        while self._ready and len(self._rows) < self.slots:
            self._start_row(self._ready.popleft(), now)
        if self._is_growing:
            self._make_room(now)
        while self._prompts and self._prompts[0].is_over:
            self._prompts.popleft()
        has_prompt = bool(self._prompts) and self.hold_prompt(self._prompts[0])
        self._start = now
        if self._rows and (has_prompt or max(self._free) > now):
            self._begin_mixed(now, has_prompt)
        elif self._rows:
            self._begin_rounds(now)
        elif has_prompt:
            self._begin_chunks(now)
        else:
            self._span = _Span.IDLE
            self._set_timer(inf)

    # --- decode -----------------------------------------------------------------------------

    @property
    def _context(self) -> float:
        """Mean context of the rows in the first round of the span."""
        return self._round + self._offsets / len(self._rows)

    def _start_row(self, attempt: Attempt, now: float) -> None:
        attempt.start_round = self._round
        attempt.decode_start = now
        life = attempt.life
        if isnan(life.decode_start):
            life.decode_start = now
        life.decode_replica = self.id
        self._offsets += attempt.prompt_tokens + 1 - self._round
        heappush(self._rows, (self._round + attempt.answer_tokens, life.index, attempt))

    def _begin_rounds(self, now: float) -> None:
        rows = len(self._rows)
        most = 1 if self._stepwise else self._rows[0][0] - self._round
        if self._is_growing and self.kv_tokens < inf:
            # No further than one block each: whoever is let in meanwhile left that free.
            free = int((self.kv_tokens - self.held_tokens) // rows)
            most = min(most, free, KV_BLOCK_TOKENS)
        self._span = _Span.DECODE
        self._num_rounds = most
        self._set_timer(now + self._pace.run_seconds(rows, self._context, most))

    def _cut_rounds(self, now: float) -> None:
        rows, context, elapsed = len(self._rows), self._context, now - self._start
        rounds = self._pace.rounds_until(rows, context, elapsed, self._num_rounds)
        if rounds < self._num_rounds:
            self._num_rounds = rounds
            end = self._start + self._pace.run_seconds(rows, context, rounds)
            self._set_timer(max(end, now))

    def _rounds_done(self, now: float) -> int:
        """Return the rounds of the present span that are complete."""
        if self._span is not _Span.DECODE:
            return 0
        rows, context, elapsed = len(self._rows), self._context, now - self._start
        rounds = self._pace.rounds_until(rows, context, elapsed, self._num_rounds)
        done = self._pace.run_seconds(rows, context, rounds) <= elapsed + 1e-9
        return rounds if done else rounds - 1

    def _end_rounds(self, now: float) -> None:
        rows, rounds = len(self._rows), self._num_rounds
        middle = self._context + (rounds - 1) / 2
        for stage, seconds in enumerate(self._pace.decode_busy(rows, middle)):
            self.busy_seconds[stage] += rounds * seconds
        self._round += rounds
        if self._is_growing:
            self.held_tokens += rounds * rows
        while self._rows and self._rows[0][0] <= self._round:
            self._release_row(heappop(self._rows)[2], now, Step.FINISHED)
        for attempt, position in self._picked:
            self._advance_prompt(attempt, position, now, now)
        self._picked = []

    def _end_row(self, attempt: Attempt, now: float) -> None:
        rounds = self._round - attempt.start_round
        self._offsets -= attempt.prompt_tokens + 1 - attempt.start_round
        if self._is_growing:
            attempt.decode_held += rounds
        life = attempt.life
        life.generated_tokens += rounds
        life.decode_tokens += rounds
        life.decode_seconds += now - attempt.decode_start

    def _release_row(self, attempt: Attempt, now: float, step: Step) -> None:
        self._end_row(attempt, now)
        attempt.is_over = True
        self.forget_decode(attempt)
        self.outbox.append((step, now, attempt))

    def _make_room(self, now: float) -> None:
        """Send the youngest rows back to the queue until all others can grow by one."""
        while self._rows and self.held_tokens + len(self._rows) > self.kv_tokens:
            youngest = max(self._rows, key=lambda row: row[1])
            self._rows.remove(youngest)
            heapify(self._rows)
            self._release_row(youngest[2], now, Step.EVICTED)

    # --- prefill ----------------------------------------------------------------------------

    def _begin_chunks(self, now: float) -> None:
        attempt = self._prompts[0]
        self._start_prompt(attempt, now)
        position = attempt.position
        while position < attempt.prompt_tokens:
            start = max(now, self._free[0])
            size = self._pace.chunk_tokens(attempt.prompt_tokens, position)
            chunk = self._pace.chunk_seconds(size, position)
            leaves = self._pace.pass_chunk(self._free, start, chunk)
            position += size
            self._entries.append(_Entry(start, position, tuple(self._free), leaves))
        self._span = _Span.PREFILL
        self._set_timer(self._free[0])
        if attempt.position == 0:
            self.outbox.append((Step.FIRST_CHUNK, self._entries[0].leaves, attempt))

    def _cut_chunks(self, now: float) -> None:
        entered = [entry for entry in self._entries if entry.start <= now]
        if len(entered) < len(self._entries):
            self._entries = entered
            self._free = list(entered[-1].free)
            self._set_timer(max(self._free[0], now))

    def _end_chunks(self) -> None:
        attempt = self._prompts[0]
        position = attempt.position
        for entry in self._entries:
            self._count_busy(self._pace.chunk_seconds(entry.position - position, position))
            position = entry.position
        last = self._entries[-1]
        self._entries = []
        # The first chunk was reported when it was sent on its way.
        self._advance_prompt(attempt, position, last.leaves, None)

    def _start_prompt(self, attempt: Attempt, now: float) -> None:
        if not isnan(attempt.prefill_start):
            return
        attempt.prefill_start = now
        life = attempt.life
        if isnan(life.prefill_start):
            life.prefill_start = now
        life.prefill_replica = self.id
        self.outbox.append((Step.STARTED, now, attempt))

    def _advance_prompt(
        self, attempt: Attempt, position: int, done: float, first_chunk: float | None
    ) -> None:
        """Account a prompt up to ``position``; report its end at ``done``."""
        if attempt.is_over:
            # Its replica for decode was lost meanwhile.
            attempt.position = position
            if attempt in self._prompts:
                self._prompts.remove(attempt)
            return
        if attempt.position == 0 and first_chunk is not None:
            self.outbox.append((Step.FIRST_CHUNK, first_chunk, attempt))
        self._pending_tokens -= position - attempt.position
        attempt.position = position
        if position == attempt.prompt_tokens:
            self._prompts.remove(attempt)
            self.outbox.append((Step.PREFILLED, done, attempt))

    def _count_busy(self, chunk: tuple[float, ...]) -> None:
        for stage, seconds in enumerate(self._pace.stage_times(chunk)):
            self.busy_seconds[stage] += seconds

    # --- both -------------------------------------------------------------------------------

    def _begin_mixed(self, now: float, has_prompt: bool) -> None:
        """Begin one round with at most one chunk before each group."""
        rows = len(self._rows)
        chunks: list[tuple[float, ...]] = []
        most = self._pace.groups(rows)[0] if has_prompt else 0
        for attempt in self._prompts:
            if attempt.is_over:
                continue
            if len(chunks) >= most or not self.hold_prompt(attempt):
                break
            self._start_prompt(attempt, now)
            position = attempt.position
            while position < attempt.prompt_tokens and len(chunks) < most:
                size = self._pace.chunk_tokens(attempt.prompt_tokens, position)
                chunks.append(self._pace.chunk_seconds(size, position))
                position += size
            self._picked.append((attempt, position))
        for chunk in chunks:
            self._count_busy(chunk)
        occupied = [max(free - now, 0.0) for free in self._free]
        self._span = _Span.MIXED
        self._num_rounds = 1
        self._set_timer(now + self._pace.mixed_seconds(rows, self._context, chunks, occupied))

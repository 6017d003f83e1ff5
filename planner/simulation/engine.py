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
from math import inf, isnan
from typing import Final

from broker.placement import KV_BLOCK_TOKENS
from planner.simulation.attempts import Attempt, Step
from planner.simulation.chunks import ChunkPipeline
from planner.simulation.ledger import Ledger
from planner.simulation.pace import pace_of
from planner.simulation.rows import Rows
from planner.simulation.scenario import SimReplica

# A chunk often takes just as long as a round: which comes first must not be left to rounding.
_ROUNDING: Final = 1e-9


class _Span(Enum):
    IDLE = auto()
    PREFILL = auto()
    DECODE = auto()
    MIXED = auto()


class Engine(Ledger):
    """A replica's state and work. It is a `states.ReplicaState`.

    Args:
        replica: What it is.
        slowdowns: Factor of each stage's device now.
        mean_prompt_tokens: For which the planned prefill rate is stated.
        clock: Returns the time now.
        is_growing: Rows reserve what they have, not what they will need.
        knows_speeds: Routers see its true speed.
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
        knows_speeds: bool = False,
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
        self._knows_speeds = knows_speeds
        self._pace = pace_of(replica, tuple(slowdowns))
        if knows_speeds:
            self.believe(self._pace)
        self._prompts: deque[Attempt] = deque()
        self._ready: deque[Attempt] = deque()
        self._rows = Rows()
        self._chunks = ChunkPipeline(len(self._pace.delays))
        self._span = _Span.IDLE
        self._start = 0.0
        self._num_rounds = 0
        self._chunk = (0.0,) * len(self._pace.delays)  # the last that entered beside rows

    # --- what routers see -------------------------------------------------------------------

    @property
    def num_complete(self) -> int:
        """Requests that decode, or wait for a row with their KV here."""
        return len(self._rows) + len(self._ready)

    @property
    def pending_prompt_tokens(self) -> int:
        """Prompt positions bound here and not through prefill."""
        if self._span is not _Span.PREFILL:
            return self._pending_tokens
        length = self.timer_seconds - self._start
        share = (self._clock() - self._start) / length if length > 0 else 1.0
        done = int(min(share, 1.0) * self._chunks.num_entering)
        return max(self._pending_tokens - done, 0)

    def prompt_seconds(self, num_tokens: int) -> float:
        """Return the planned time of a prompt that waits for nothing, beside its streams."""
        pace, rows = self.planned, len(self._rows)
        if not rows:
            return pace.prompt_seconds(num_tokens)
        chunk = pace.chunk_seconds(pace.chunk_tokens(num_tokens, 0), 0)
        _, stretch = pace.mixed_round(rows, self.replica.planned_context, chunk)
        return max(stretch) * pace.prompt_seconds(num_tokens)

    def generated_tokens(self) -> list[int]:
        """Return the tokens that each decoding request has, most first."""
        return self._rows.generated(self._rounds_done(self._clock()))

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
        self._rows.round += self._rounds_done(now)
        self._rows.pop_all(now)
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
            # By a timer, so that all that comes at this moment begins together.
            if self.timer_seconds > now:
                self._set_timer(now)
        elif self._span is _Span.DECODE:
            has_row = bool(self._ready) and len(self._rows) < self.slots
            if has_row or self._prompts or self._is_changed:
                self._cut_rounds(now)
        elif (
            self._span is _Span.PREFILL
            and (self._ready or self._is_changed)
            and self._chunks.cut(now)
        ):
            self._set_timer(max(self._chunks.entry_free, now))

    def on_timer(self) -> None:
        """End the span at its boundary and begin the next one."""
        now = self._clock()
        if self._span is _Span.PREFILL:
            position, leaves = self._chunks.end(self._pace, self.busy_seconds)
            self._advance_prompt(self._prompts[0], position, leaves)
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
            if self._knows_speeds:
                self.believe(self._pace)
        while self._ready and len(self._rows) < self.slots:
            attempt = self._ready.popleft()
            attempt.life.decode_replica = self.id
            self._rows.add(attempt, now)
        if self._is_growing:
            self._make_room(now)
        while self._prompts and self._prompts[0].is_over:
            self._prompts.popleft()
        has_prompt = bool(self._prompts) and self.hold_prompt(self._prompts[0])
        self._start = now
        if self._rows and (has_prompt or self._chunks.empty_at > now + _ROUNDING):
            self._begin_mixed(now, has_prompt)
        elif self._rows:
            self._begin_rounds(now)
        elif has_prompt:
            self._begin_chunks(now)
        else:
            self._span = _Span.IDLE
            self._set_timer(inf)

    def _begin_rounds(self, now: float) -> None:
        """Decode until the first row ends or memory is full."""
        rows = len(self._rows)
        most = 1 if self._stepwise else self._rows.rounds_left
        if self._is_growing and self.kv_tokens < inf:
            # No further than one block each: whoever is let in meanwhile left that free.
            free = int((self.kv_tokens - self.held_tokens) // rows)
            most = min(most, free, KV_BLOCK_TOKENS)
        self._span = _Span.DECODE
        self._num_rounds = most
        self._set_timer(now + self._pace.run_seconds(rows, self._rows.context, most))

    def _begin_chunks(self, now: float) -> None:
        """Prefill the first prompt, nothing else being here."""
        attempt = self._prompts[0]
        self._start_prompt(attempt, now)
        leaves = self._chunks.enter(self._pace, attempt, now)
        self._span = _Span.PREFILL
        self._set_timer(self._chunks.entry_free)
        if attempt.position == 0:
            self.outbox.append((Step.FIRST_CHUNK, leaves, attempt))

    def _begin_mixed(self, now: float, has_prompt: bool) -> None:
        """Begin one round beside which chunks pass."""
        if has_prompt:
            first = self._prompts[0]
            size = self._pace.chunk_tokens(first.prompt_tokens, first.position)
            self._chunk = self._pace.chunk_seconds(size, first.position)
        rows, context = len(self._rows), self._rows.context
        seconds, stretch = self._pace.mixed_round(rows, context, self._chunk)
        if has_prompt:
            self._squeeze_in(now, now + seconds - _ROUNDING, stretch)
        self._span = _Span.MIXED
        self._num_rounds = 1
        self._set_timer(now + seconds)

    def _squeeze_in(self, now: float, until: float, stretch: Sequence[float]) -> None:
        """Let chunks into the first stage before ``until``, beside the rows."""
        for attempt in [a for a in self._prompts if not a.is_over]:
            if self._chunks.entry_free >= until or not self.hold_prompt(attempt):
                break
            self._start_prompt(attempt, now)
            position, leaves = attempt.position, now
            while position < attempt.prompt_tokens and self._chunks.entry_free < until:
                size = self._pace.chunk_tokens(attempt.prompt_tokens, position)
                chunk = self._pace.chunk_seconds(size, position)
                self._pace.count_chunk(chunk, self.busy_seconds)
                slowed = [part * more for part, more in zip(chunk, stretch, strict=True)]
                leaves = self._chunks.squeeze_in(self._pace, slowed, now)
                if position == 0:
                    self.outbox.append((Step.FIRST_CHUNK, leaves, attempt))
                position += size
            self._advance_prompt(attempt, position, leaves)

    # --- rounds -----------------------------------------------------------------------------

    def _cut_rounds(self, now: float) -> None:
        rows, context, elapsed = len(self._rows), self._rows.context, now - self._start
        rounds = self._pace.rounds_until(rows, context, elapsed, self._num_rounds)
        if rounds < self._num_rounds:
            self._num_rounds = rounds
            end = self._start + self._pace.run_seconds(rows, context, rounds)
            self._set_timer(max(end, now))

    def _rounds_done(self, now: float) -> int:
        """Return the rounds of the present span that are complete."""
        if self._span is not _Span.DECODE:
            return 0
        rows, context, elapsed = len(self._rows), self._rows.context, now - self._start
        rounds = self._pace.rounds_until(rows, context, elapsed, self._num_rounds)
        is_complete = self._pace.run_seconds(rows, context, rounds) <= elapsed + 1e-9
        return rounds if is_complete else rounds - 1

    def _end_rounds(self, now: float) -> None:
        rows, rounds = len(self._rows), self._num_rounds
        middle = self._rows.context + (rounds - 1) / 2
        for stage, seconds in enumerate(self._pace.decode_busy(rows, middle)):
            self.busy_seconds[stage] += rounds * seconds
        self._rows.round += rounds
        if self._is_growing:
            self.held_tokens += rounds * rows
        for attempt in self._rows.pop_ended(now):
            self._release(attempt, now, Step.FINISHED)

    def _release(self, attempt: Attempt, now: float, step: Step) -> None:
        if self._is_growing:
            attempt.decode_held += self._rows.round - attempt.start_round
        attempt.is_over = True
        self.forget_decode(attempt)
        self.outbox.append((step, now, attempt))

    def _make_room(self, now: float) -> None:
        """Send the youngest rows back to the queue until all others can grow by one."""
        while self._rows and self.held_tokens + len(self._rows) > self.kv_tokens:
            self._release(self._rows.pop_youngest(now), now, Step.EVICTED)

    # --- prompts ----------------------------------------------------------------------------

    def _start_prompt(self, attempt: Attempt, now: float) -> None:
        if not isnan(attempt.prefill_start):
            return
        attempt.prefill_start = now
        life = attempt.life
        if isnan(life.prefill_start):
            life.prefill_start = now
        life.prefill_replica = self.id
        self.outbox.append((Step.STARTED, now, attempt))

    def _advance_prompt(self, attempt: Attempt, position: int, leaves: float) -> None:
        """Account a prompt up to ``position``; its last chunk leaves the replica then."""
        if attempt.is_over:
            # Its replica for decode was lost meanwhile, and its positions are forgotten.
            self._prompts.remove(attempt)
            return
        self._pending_tokens -= position - attempt.position
        attempt.position = position
        if position == attempt.prompt_tokens:
            self._prompts.remove(attempt)
            self.outbox.append((Step.PREFILLED, leaves, attempt))

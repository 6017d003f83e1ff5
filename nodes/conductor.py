"""The master's part of a replica: grants, admission, groups, timers. Pure.

The master is stage 0. It accounts for the whole replica, owns the timer of every step in
flight, and is the only one to form groups. Other stages only answer by position. What it
decides becomes messages (`Outgoing`) and jobs for its own stage (`next_chunk`, `launch`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from broker.events import LossKind, Lost, Waiting
from broker.grouping import step_seconds
from broker.plan import Replica
from broker.room import slots_of
from broker.work import (
    FirstToken,
    HandedOver,
    KvComplete,
    Live,
    Open,
    Release,
    Repeat,
    RequestKey,
    Reserve,
    ReserveKind,
    RowFailed,
    StepDone,
    StepRow,
)
from nodes.groups import Group, Groups
from nodes.outgoing import Outgoing, Timers, ToGateway, ToStage
from nodes.progress import Admission, Complete, Prefill
from nodes.reservations import Held, Reservations
from nodes.speculation import Speculation
from nodes.timing import Timing


class Conductor:
    """Decides for one replica. Methods append to ``out``; the stage sends it."""

    def __init__(
        self,
        replica: Replica,
        timers: Timers,
        chunk_tokens: int,
        kv_credit_bytes: int,
        lookup: Callable[[str], Replica | None],
        held: Held = lambda message: 0,
        speculation: Speculation | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.replica = replica
        self.out: list[Outgoing] = []
        self.reservations = Reservations(replica, timers.grant, kv_credit_bytes, held)
        self.groups = Groups(replica)
        self.speculation = speculation or Speculation()
        self._timing = timing or Timing(replica.id, 0)
        self._step_seconds = cache(partial(step_seconds, replica.stages))
        self._timers = timers
        self._chunk_tokens = chunk_tokens
        self._lookup = lookup
        self._prefills: dict[RequestKey, Prefill] = {}
        self._admissions: dict[RequestKey, Admission] = {}
        self._waiting: dict[RequestKey, Complete] = {}
        self._active: dict[RequestKey, Open] = {}
        self._announced_at = 0.0
        self._chunk_seconds = 0.0

    def update(self, replica: Replica) -> None:
        """The plan changed the role or the slots of this replica, not its stages."""
        self.replica = self.reservations.replica = self.groups.replica = replica
        self._step_seconds = cache(partial(step_seconds, replica.stages))

    @property
    def live(self) -> list[RequestKey]:
        """Requests that the stages of this replica must keep."""
        return [*{**self._prefills, **self._admissions, **self._waiting, **self._active}]

    @property
    def num_active(self) -> int:
        """Requests that decode here."""
        return len(self._active)

    # --- messages --------------------------------------------------------------------------

    def reserve(self, message: Reserve, now: float) -> None:
        """Answer a gateway that asks for room."""
        self.out += self.reservations.reserve(message, now)

    def open(self, message: Open, now: float) -> bool:
        """Begin a request that holds a grant; without one the gateway must ask again."""
        key = message.key
        if not self.reservations.open(key):
            self._lose(key, message, LossKind.STALLED, "the grant has expired", now)
            return False
        kind = self.reservations.kind(key)
        if kind is not ReserveKind.DECODE and message.prefill_replica == self.replica.id:
            cached = message.cached_tokens
            self._prefills[key] = Prefill(message, cached, cached, waiting_since=now)
        if kind is not ReserveKind.PREFILL and message.decode_replica == self.replica.id:
            self._admissions[key] = Admission(message, now, now)
        return True

    def release(self, key: RequestKey, now: float, reason: str) -> None:
        """Forget a request everywhere in the replica and hand its room on."""
        self._forget(key, reason)
        self.out += self.reservations.grant_waiting(now)

    def _forget(self, key: RequestKey, reason: str) -> None:
        known = key in self.live
        for phase in (self._prefills, self._admissions, self._waiting, self._active):
            phase.pop(key, None)
        self.groups.remove(key)
        self.speculation.forget(key)
        self.reservations.release(key)
        if known:
            for stage in range(len(self.replica.stages)):
                self._to_stage(stage, Release(**_ids(key), reason=reason))

    def prefill_progress(
        self, key: RequestKey, end: int, now: float, *, is_preparing: bool = False
    ) -> None:
        """The last stage's KV of a prompt has grown, or it still prepares to choose a token."""
        prefill = self._prefills.get(key)
        if prefill is None:
            return
        if is_preparing:
            prefill.moves(now)
        if end > prefill.acked:
            if prefill.next_start - prefill.acked <= self._chunk_tokens:
                seconds = now - prefill.waiting_since
                self._chunk_seconds = 0.8 * self._chunk_seconds + 0.2 * seconds
            prefill.acked = end
            prefill.moves(now)

    def first_token(self, message: FirstToken, now: float) -> None:
        """Prefill is through; decode begins when the KV is here as well, and a row is free."""
        key = message.key
        admission = self._admissions.get(key)
        if admission is None:
            opened = self._opened(key)
            if opened is not None:
                self._hand_over(opened)
            return
        admission.alive_at = now
        admission.token = message
        self._timing.token_came(key, now)
        if admission.open.prefill_replica == self.replica.id:
            admission.complete.update(range(len(self.replica.stages)))
        self._admit_if_ready(admission, now)

    def kv_complete(self, message: KvComplete, now: float) -> None:
        """One stage of this replica has all its KV."""
        admission = self._admissions.get(message.key)
        if admission is not None:
            admission.alive_at = now
            admission.complete.add(message.stage)
            self._admit_if_ready(admission, now)

    def kv_moved(self, key: RequestKey, now: float) -> None:
        """KV arrived at the master's own stage: prefill is alive."""
        if key in self._admissions:
            self._admissions[key].alive_at = now

    def handed_over(self, message: HandedOver, now: float) -> None:
        """The decode replica has everything, so the copy is freed; or it is alive at least."""
        prefill = self._prefills.get(message.key)
        if prefill is None:
            return
        if message.complete:
            self.release(message.key, now, "handed over")
        else:
            prefill.moves(now)

    def row_failed(self, message: RowFailed, now: float) -> None:
        """A forward pass raised on this request, or a stage could not go on with it."""
        key, opened = message.key, self._opened(message.key)
        # Whoever has not kept what the master granted may say so before `Open` came here.
        gateway = self.reservations.gateway(key) if message.uncached else None
        if gateway is not None:
            self.release(key, now, message.error)
            self._tell_lost(key, gateway, LossKind.UNCACHED, message.error)
        elif opened is not None:
            kind = LossKind.STALLED if message.retry else LossKind.FAILED
            self._lose(key, opened, kind, message.error, now)

    def step_done(self, message: StepDone, now: float) -> None:
        """Tokens of a group came back round the ring."""
        self._timing.rows_came(message.results, now)
        for results in self.groups.complete(message.group, message.results, now):
            last = results[-1]
            if last.key not in self._active:
                continue
            self.speculation.take(results)
            if last.finish_reason is not None:
                self.release(last.key, now, "finished")
            else:
                row = StepRow(last.request_id, last.attempt, last.position + 1, last.token_id)
                self._continue(row, now)

    def dismiss(self, reason: str, now: float) -> None:
        """Send all that is here back to the queue: this replica is to make room."""
        for key in self.live:
            opened = self._opened(key)
            assert opened is not None, "what is live was opened"
            self._lose(key, opened, LossKind.PREEMPTED, reason, now)

    def gateway_lost(self, gateway: str, now: float) -> None:
        """Release all that a lost gateway holds."""
        for key in self.reservations.keys_of(gateway):
            self.release(key, now, "its gateway is lost")

    # --- jobs of stage 0 -------------------------------------------------------------------

    def next_chunk(self) -> tuple[Open, int, int] | None:
        """Return (request, start, end) of the next prefill chunk; oldest prompt first.

        Chunks lie on a fixed grid from position 0 and never mix prompt and answer. At
        most two chunks per stage are on their way, so a fast first stage cannot flood the
        slow ones.
        """
        for prefill in self._prefills.values():
            opened = prefill.open
            start = prefill.next_start
            window = 2 * len(self.replica.stages) * self._chunk_tokens
            if start >= opened.known_tokens or start - prefill.acked >= window:
                continue
            limit = opened.num_prompt_tokens
            base = 0
            if start >= limit:
                base, limit = limit, opened.known_tokens
            grid = base + ((start - base) // self._chunk_tokens + 1) * self._chunk_tokens
            return opened, start, min(grid, limit)
        return None

    def chunk_ran(self, key: RequestKey, end: int, now: float) -> None:
        """Stage 0 ran a chunk."""
        prefill = self._prefills.get(key)
        if prefill is not None:
            if prefill.next_start <= prefill.acked:
                prefill.waiting_since = now
            prefill.next_start = max(prefill.next_start, end)

    def launch(self, now: float) -> list[Group]:
        """Give free rows to those that wait, and return groups that stage 0 is to run.

        Rows are given in the order in which requests became complete.
        """
        while self._waiting and len(self._active) < slots_of(self.replica):
            key = next(iter(self._waiting))
            first = self._waiting.pop(key)
            self._active[key] = first.open
            self._timing.row_given(key, now)
            self._continue(first.row, now)
        for key, waiting in self._waiting.items():
            if now - waiting.said_at >= self._timers.announce:
                waiting.said_at = now
                self.out.append(ToGateway(waiting.open.gateway, Waiting(**_ids(key))))
        launched = self.groups.launch(now)
        seconds = partial(self._step_seconds, len(self.groups.in_flight))
        for group in launched:
            group.rows = self.speculation.extended(group.rows, seconds, self.reservations.grow)
        return launched

    # --- time ------------------------------------------------------------------------------

    def tick(self, now: float) -> tuple[list[Group], list[tuple[RequestKey, int]]]:
        """Run timers. Returns groups, and (request, position) of prefills, to send again."""
        self.out += self.reservations.expire(now)
        self._tick_admissions(now)
        if self.live and now - self._announced_at >= self._timers.announce:
            self._announced_at = now
            for stage in range(len(self.replica.stages)):
                self._to_stage(stage, Live(requests=self.live))
        return self._tick_groups(now), self._tick_prefills(now)

    def _tick_groups(self, now: float) -> list[Group]:
        patience = max(self._timers.repeat, 4 * self.groups.round_seconds())
        again = []
        for group in self.groups.in_flight:
            if now - group.waiting_since < patience:
                continue
            if group.repeats >= self._timers.repeats:
                for key in list(group.pending):
                    reason = f"no token after {group.repeats} repeats in {self.replica.id}"
                    self._lose(key, self._active[key], LossKind.STALLED, reason, now)
                continue
            group.repeats += 1
            group.waiting_since = now
            again.append(group)
        return again

    def _tick_prefills(self, now: float) -> list[tuple[RequestKey, int]]:
        again = []
        patience = max(self._timers.repeat, 4 * self._chunk_seconds)
        for key, prefill in list(self._prefills.items()):
            if prefill.next_start <= prefill.acked < prefill.open.known_tokens:
                continue  # Nothing is on its way: the chunk waits for this very device.
            if now - prefill.waiting_since < patience:
                continue
            if prefill.repeats >= self._timers.repeats:
                what = "prefill" if prefill.acked < prefill.open.known_tokens else "hand-over"
                reason = f"{what} in {self.replica.id} stands still"
                self._lose(key, prefill.open, LossKind.STALLED, reason, now)
                continue
            prefill.repeats += 1
            prefill.waiting_since = now
            if prefill.acked < prefill.open.known_tokens:
                again.append((key, prefill.acked))
            else:
                last = len(self.replica.stages) - 1
                self._to_stage(last, Repeat(**_ids(key), position=prefill.acked))
        return again

    def _tick_admissions(self, now: float) -> None:
        for key, admission in list(self._admissions.items()):
            if now - admission.alive_at >= self._timers.admission:
                reason = f"prefill of {self.replica.id} shows no sign of life"
                self._lose(key, admission.open, LossKind.STALLED, reason, now)
            elif admission.token is not None and now - admission.asked_at >= self._timers.repeat:
                admission.asked_at = now
                for stage in range(len(self.replica.stages)):
                    if stage not in admission.complete:
                        position = admission.open.known_tokens
                        self._to_stage(stage, Repeat(**_ids(key), position=position))

    # --- helpers ---------------------------------------------------------------------------

    def _admit_if_ready(self, admission: Admission, now: float) -> None:
        token = admission.token
        key = admission.open.key
        if token is None:
            return
        if len(admission.complete) < len(self.replica.stages):
            # Tells the prefill master that its token arrived and only KV is awaited.
            self._hand_over(admission.open, complete=False)
            return
        if token.finish_reason is not None:
            # The answer is one token long: nothing to decode. The prefill master goes on
            # repeating the token until the gateway has it and releases both.
            return
        del self._admissions[key]
        self._prefills.pop(key, None)
        self._timing.complete(key, now)
        row = StepRow(token.request_id, token.attempt, token.position, token.token_id)
        self._waiting[key] = Complete(admission.open, row)
        if admission.open.prefill_replica != self.replica.id:
            self._hand_over(admission.open)
        self.reservations.complete(key)
        self.out += self.reservations.grant_waiting(now)

    def _continue(self, row: StepRow, now: float) -> None:
        """Let a row go on if there is room; otherwise the youngest request makes room.

        The room goes to this row before anything that waits, or a newcomer would take it
        and be the next youngest.
        """
        while not self.reservations.grow(row.key, row.position + 1):
            youngest = self.reservations.youngest()
            opened = self._opened(youngest)
            reason = f"KV room of {self.replica.id} ran out; it goes on from the queue"
            self._forget(youngest, reason)
            if opened is not None:
                self._tell_lost(youngest, opened.gateway, LossKind.PREEMPTED, reason)
            if youngest == row.key:
                break
        else:
            self.groups.add(row)
        self.out += self.reservations.grant_waiting(now)

    def _opened(self, key: RequestKey) -> Open | None:
        if key in self._active:
            return self._active[key]
        entry = self._waiting.get(key) or self._prefills.get(key) or self._admissions.get(key)
        return entry.open if entry is not None else None

    def _lose(self, key: RequestKey, opened: Open, kind: LossKind, reason: str, now: float) -> None:
        self.release(key, now, reason)
        self._tell_lost(key, opened.gateway, kind, reason)

    def _tell_lost(self, key: RequestKey, gateway: str, kind: LossKind, reason: str) -> None:
        self.out.append(ToGateway(gateway, Lost(**_ids(key), kind=kind, reason=reason)))

    def _hand_over(self, opened: Open, *, complete: bool = True) -> None:
        prefill = self._lookup(opened.prefill_replica)
        if prefill is not None:
            header = HandedOver(**_ids(opened.key), complete=complete)
            self.out.append(ToStage(prefill.id, 0, prefill.stages[0].device, header))

    def _to_stage(self, stage: int, header: Release | Repeat | Live) -> None:
        device = self.replica.stages[stage].device
        self.out.append(ToStage(self.replica.id, stage, device, header))


def _ids(key: RequestKey) -> dict[str, Any]:
    return {"request_id": key.request_id, "attempt": key.attempt}

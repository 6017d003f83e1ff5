"""Runs a scenario: discrete events between routers, replicas and links. Pure, deterministic."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf, isnan
from statistics import fmean
from typing import Any, Final

from planner.simulation.attempts import Attempt, Life, Step
from planner.simulation.binding import bind_late
from planner.simulation.choices import choose_decode, choose_pair, choose_prefill, lend
from planner.simulation.engine import Engine
from planner.simulation.fleet import Fleet
from planner.simulation.metrics import Result
from planner.simulation.network import Links
from planner.simulation.routing import Bind
from planner.simulation.scenario import (
    DeviceLoss,
    DeviceSlowdown,
    KvReservation,
    PlanChange,
    Scenario,
)
from planner.simulation.sending import Sender
from planner.simulation.states import Demand, decode_candidates

_EARLY_STEPS: Final = (Step.STARTED, Step.FIRST_CHUNK)


def simulate(scenario: Scenario) -> Result:
    """Return what becomes of every request of ``scenario``.

    Equal scenarios give equal results. Time O(events log events), where decoding costs one
    event per change of a replica's composition, not one per token.

    Raises:
        ValueError: A plan change names a lost device.
    """
    return _Simulation(scenario).run()


class _Simulation:
    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._routing = scenario.routing
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._num_events = 0
        requests = sorted(scenario.requests, key=lambda request: request.arrival_seconds)
        self._lives = [Life(index, request) for index, request in enumerate(requests)]
        self._expected = scenario.expected_answer_tokens or fmean(
            request.answer_tokens for request in requests
        )
        prompt_tokens = round(fmean(request.prompt_tokens for request in requests))
        self._fleet = Fleet(scenario, prompt_tokens, lambda: self._now)
        self._versions: dict[Engine, int] = {}
        self._queue: list[tuple[int, Attempt]] = []
        self._stranded: list[Attempt] = []
        self._live: set[Attempt] = set()
        self._links: Links[Attempt] = Links(scenario.network)
        self._links_version = 0
        self._sender = Sender(scenario, self._links)

    def run(self) -> Result:
        for life in self._lives:
            self._at(life.request.arrival_seconds, self._arrive, life)
        for fault in self._scenario.faults:
            if isinstance(fault, DeviceLoss):
                self._at(fault.at_seconds, self._lose, fault)
            elif isinstance(fault, DeviceSlowdown):
                self._at(fault.at_seconds, self._slow_down, fault)
            else:
                self._at(fault.at_seconds, self._change_plan, fault)
        restarts = 0
        while True:
            while self._events:
                self._now, _, handle, arguments = heappop(self._events)
                handle(*arguments)
            if not self._restart_youngest():
                break
            restarts += 1
            if restarts > 100 * len(self._lives):
                raise ValueError(
                    "replicas wait for each other's KV memory for ever: give them more "
                    "kv_tokens, or bind late, where nothing begins without both grants"
                )
        return self._result()

    def _at(self, when: float, handle: Callable[..., None], *arguments: Any) -> None:
        self._num_events += 1
        heappush(self._events, (when, self._num_events, handle, arguments))

    # --- replicas ---------------------------------------------------------------------------

    def _after(self, engine: Engine) -> None:
        """Take over what an engine said since it was touched."""
        for step, when, attempt in engine.outbox:
            if step not in _EARLY_STEPS or self._sender.begins_with(step, attempt):
                self._at(when, self._take_step, step, attempt)
        engine.outbox.clear()
        if self._versions.get(engine) != engine.version:
            self._versions[engine] = engine.version
            if engine.timer_seconds < inf:
                self._at(engine.timer_seconds, self._on_timer, engine, engine.version)
        while engine.inbox and engine.hold_decode(engine.inbox[0]):
            self._send(engine.inbox.popleft())

    def _on_timer(self, engine: Engine, version: int) -> None:
        if engine.version == version:
            engine.on_timer()
            self._after(engine)

    def _take_step(self, step: Step, attempt: Attempt) -> None:
        if step is Step.FINISHED:
            self._finish(attempt)
        elif step is Step.EVICTED:
            self._live.discard(attempt)
            self._route(attempt.life.next_attempt(self._scenario.reservation))
        elif attempt.is_over:
            return
        elif step is Step.PREFILLED:
            self._prefilled(attempt)
        else:
            if not attempt.is_prefilled:
                self._ask_to_send(attempt)
            return
        self._bind_queue()

    # --- a request's life -------------------------------------------------------------------

    def _arrive(self, life: Life) -> None:
        self._route(life.next_attempt(self._scenario.reservation))
        self._bind_queue()

    def _route(self, attempt: Attempt) -> None:
        if self._routing.bind is Bind.LATE:
            insort(self._queue, (attempt.life.index, attempt))
            return
        states = self._states(attempt)
        if states is None:
            return
        demand, routing = self._demand(attempt), self._routing
        decode: Engine | None
        if routing.bind is Bind.ARRIVAL:
            prefill, decode = choose_pair(states, demand, routing)
        else:
            prefill = choose_prefill(states, demand, routing)
            # One that does both keeps its requests: only then is memory for the answer sure.
            decode = prefill if prefill in decode_candidates(states) else None
        if routing.mixed_pool is not None and decode is not None:
            lend(prefill, decode)
        self._bind(attempt, prefill, decode)

    def _bind_queue(self) -> None:
        """Bind as many of the queue as can begin, first come first served."""
        while self._queue:
            attempt = self._queue[0][1]
            states = self._states(attempt)
            if states is not None:
                exposed = self._sender.exposed_seconds(attempt.prompt_tokens)
                pair = bind_late(states, self._demand(attempt), self._routing, exposed)
                if pair is None:
                    return
                prefill, decode = pair
                held = decode.hold_decode(attempt)
                held = held and (prefill is decode or prefill.hold_prompt(attempt))
                assert held, "a pair that can grant has room"
                self._bind(attempt, prefill, decode)
            self._queue.pop(0)

    def _bind(self, attempt: Attempt, prefill: Engine, decode: Engine | None) -> None:
        self._live.add(attempt)
        prefill.bind_prompt(attempt)
        if decode is not None:
            decode.bind_decode(attempt)
        prefill.enqueue(attempt)
        self._after(prefill)

    def _states(self, attempt: Attempt) -> list[Engine] | None:
        """Return the replicas that can hold a request; None: it is refused, or must wait."""
        states = self._fleet.serving()
        if not states:
            self._stranded.append(attempt)
            return None
        needed = attempt.life.request.total_tokens
        able = [engine for engine in states if engine.kv_tokens >= needed]
        if not able:
            attempt.life.is_refused = True
            return None
        if self._routing.mixed_pool is not None:
            for engine in able:
                if engine.is_unused:
                    engine.pool = engine.role
        return able

    def _demand(self, attempt: Attempt) -> Demand:
        return Demand(
            prompt_tokens=attempt.prompt_tokens,
            expected_tokens=max(self._expected - attempt.life.generated_tokens, 1.0),
            reserved_tokens=attempt.reserved_tokens,
            is_growing=self._scenario.reservation is KvReservation.GROWING,
            whole_tokens=attempt.life.request.total_tokens,
        )

    def _prefilled(self, attempt: Attempt) -> None:
        life, prefill = attempt.life, attempt.prefill
        assert isinstance(prefill, Engine), "a prompt is bound until its KV has left"
        life.prefill_seconds += self._now - attempt.prefill_start
        life.prefill_tokens += attempt.prompt_tokens
        life.generated_tokens += 1
        attempt.answer_tokens -= 1
        attempt.is_prefilled = True
        if isnan(life.first_token):
            life.first_token = self._now
        if attempt.answer_tokens == 0:
            if isnan(life.decode_start):
                life.decode_start = self._now
            self._finish(attempt)
            self._drop(attempt)
            return
        if attempt.decode is None:
            states = self._states(attempt)
            if states is None:
                self._drop(attempt)
                return
            decode = choose_decode(states, self._demand(attempt), self._routing, prefill)
            decode.bind_decode(attempt)
        if attempt.decode is prefill:
            prefill.forget_prompt(attempt)
            prefill.receive(attempt)
            self._after(prefill)
        elif not attempt.is_asked:
            self._ask_to_send(attempt)
        elif attempt.sent_share > 0:
            self._send(attempt)

    def _finish(self, attempt: Attempt) -> None:
        attempt.life.finish = self._now
        self._live.discard(attempt)

    def _drop(self, attempt: Attempt) -> None:
        """End an attempt wherever it is."""
        attempt.is_over = True
        self._live.discard(attempt)
        for transfer in attempt.transfers:
            self._links.cancel(self._now, transfer)
        if attempt.transfers:
            attempt.transfers.clear()
            self._watch_links()
        for engine in (attempt.prefill, attempt.decode):
            # A lost replica is not asked to clean up.
            if isinstance(engine, Engine) and engine in self._fleet:
                engine.drop(attempt)
                self._after(engine)
        self._bind_queue()

    # --- KV on its way ----------------------------------------------------------------------

    def _ask_to_send(self, attempt: Attempt) -> None:
        attempt.is_asked = True
        decode = attempt.decode
        assert isinstance(decode, Engine), "KV is sent to the replica that was chosen"
        if not decode.inbox and decode.hold_decode(attempt):
            self._send(attempt)
        else:
            decode.inbox.append(attempt)

    def _send(self, attempt: Attempt) -> None:
        transfer = self._sender.send(self._now, attempt)
        if transfer.num_left:
            attempt.transfers.append(transfer)
            self._watch_links()
        self._check_delivered(attempt)

    def _watch_links(self) -> None:
        self._links_version += 1
        due = self._links.next_seconds()
        if due < inf:
            self._at(max(due, self._now), self._on_links, self._links_version)

    def _on_links(self, version: int) -> None:
        if version != self._links_version:
            return
        for transfer in self._links.arrived(self._now):
            attempt = transfer.owner
            attempt.transfers.remove(transfer)
            self._check_delivered(attempt)
        self._watch_links()

    def _check_delivered(self, attempt: Attempt) -> None:
        if attempt.is_prefilled and attempt.sent_share >= 1 and not attempt.transfers:
            residue = self._sender.residue_seconds(attempt)
            self._at(self._now + residue, self._deliver, attempt)

    def _deliver(self, attempt: Attempt) -> None:
        if attempt.is_over:
            return
        prefill, decode = attempt.prefill, attempt.decode
        assert isinstance(prefill, Engine)
        assert isinstance(decode, Engine)
        prefill.hand_over(attempt)
        self._after(prefill)
        decode.receive(attempt)
        self._after(decode)
        self._bind_queue()

    # --- what goes wrong --------------------------------------------------------------------

    def _lose(self, fault: DeviceLoss) -> None:
        failed = self._fleet.lose(fault.device)
        hit = [a for a in self._live if a.prefill in failed or a.decode in failed]
        for attempt in sorted(hit, key=lambda attempt: attempt.life.index):
            self._drop(attempt)
            self._at(self._now + fault.notice_seconds, self._arrive, attempt.life)

    def _slow_down(self, fault: DeviceSlowdown) -> None:
        self._fleet.slow_down(fault.device, fault.factor)
        for engine in self._fleet:
            self._after(engine)

    def _change_plan(self, change: PlanChange) -> None:
        self._fleet.change_plan(change.replicas)
        waiting, self._stranded = self._stranded, []
        for attempt in waiting:
            self._route(attempt)
        self._bind_queue()

    def _restart_youngest(self) -> bool:
        """Break a stall: each of some replicas is full of prompts that wait for another's."""
        waiting = [attempt for engine in self._fleet for attempt in engine.inbox]
        if not waiting:
            assert not self._live, "whoever is bound goes on by itself"
            return False
        attempt = max(waiting, key=lambda one: one.life.index)
        self._drop(attempt)
        self._arrive(attempt.life)
        return True

    # --- the end ----------------------------------------------------------------------------

    def _result(self) -> Result:
        begin = self._lives[0].request.arrival_seconds
        ends = [life.finish for life in self._lives if not life.is_refused]
        # What goes wrong after the last answer is no part of the run.
        end = self._now if any(map(isnan, ends)) else max(ends, default=self._now)
        duration = max(end - begin, 1e-12)
        return Result(
            records=tuple(life.record() for life in self._lives),
            stages=self._fleet.stage_uses(duration),
            duration_seconds=duration,
            kv_bytes_moved=self._links.moved_bytes,
        )

"""A fog without layers, for tests of the dispatcher: grants, opens and samples by the contract.

Masters grant by slots and by room for so many requests of `ROOM_TOKENS`, a prompt is prefilled
in two steps, and each step gives every request with a row one token; others say every
`SAY_STEPS` that they wait. The token at an index depends on the prompt alone, so an answer
can be checked however often the request was moved.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.codec import decode_frame
from broker.control import DeviceState, DeviceStatus
from broker.events import (
    Event,
    Granted,
    GrantState,
    LossKind,
    Lost,
    Opened,
    StageTimes,
    TokenRow,
    Tokens,
    Waiting,
)
from broker.placement import WAITING_ROWS
from broker.plan import LayerRange, Plan, PlanState, Rates, Replica, Role, Stage
from broker.topics import STAGE_WORK
from broker.transport import Publication
from broker.work import Open, Release, RequestKey, Resend, Reserve, ReserveKind, Sampling, Work
from gateway.dispatch import Actions, Dispatcher, DispatchSettings, FailedOutcome
from gateway.fogview import FogView
from gateway.requests import EngineError, GeneratedToken, Generation

STEP_SECONDS = 0.05
NUM_LAYERS = 6
ROOM_TOKENS = 64
SAY_STEPS = 100


def replica(
    name: str,
    devices: Sequence[str],
    role: Role = Role.BOTH,
    *,
    slots: int = 4,
    prefill_slots: int = 2,
    kv_tokens: int = 4096,
    tpot_seconds: float = STEP_SECONDS,
    prefill_rate: float = 1000.0,
) -> Replica:
    cuts = [NUM_LAYERS * i // len(devices) for i in range(len(devices) + 1)]
    stages = [
        Stage(
            device=device,
            layers=LayerRange(cuts[index], cuts[index + 1]),
            embedding=index == 0,
            head=index == len(devices) - 1,
            predicted_seconds=tpot_seconds / len(devices),
        )
        for index, device in enumerate(devices)
    ]
    return Replica(
        id=name,
        role=role,
        slots=slots,
        prefill_slots=prefill_slots,
        kv_tokens=kv_tokens,
        stages=stages,
        predicted=Rates(prefill_tokens_per_second=prefill_rate, tpot_seconds=tpot_seconds),
    )


def plan(
    *replicas: Replica,
    version: int = 1,
    state: PlanState = PlanState.ACTIVE,
    context_tokens: int = 2048,
) -> Plan:
    return Plan(
        version=version,
        state=state,
        model="tiny",
        revision="rev",
        weights="float32",
        kv_format="float32",
        chunk_tokens=32,
        context_tokens=context_tokens,
        replicas=list(replicas),
    )


def view_of(
    *replicas: Replica, session: int = 1, states: Mapping[str, DeviceState] | None = None
) -> FogView:
    """Return a view with one active plan of these replicas; devices are ready by default."""
    view = FogView().with_plan(plan(*replicas))
    for one in replicas:
        for stage in one.stages:
            state = (states or {}).get(stage.device, DeviceState.READY)
            view = view.with_status(stage.device, DeviceStatus(state=state, session=session), 0.0)
    return view


def generation(
    name: str, *, prompt: int = 5, tokens: int = 8, deadline: float | None = None
) -> Generation:
    return Generation(
        request_id=name,
        prompt_ids=tuple(range(1, prompt + 1)),
        max_tokens=tokens,
        sampling=Sampling(),
        deadline_seconds=deadline,
    )


def expected_tokens(prompt: int = 5, tokens: int = 8) -> list[int]:
    return [token_at(tuple(range(1, prompt + 1)), index) for index in range(tokens)]


def token_at(prompt_ids: Sequence[int], index: int) -> int:
    return (sum(prompt_ids) * 31 + index * 7) % 1009


def sent(actions: Actions, kind: type[Any] | None = None) -> list[tuple[dict[str, str], Any]]:
    """Return (names in the topic, message) of what was published, perhaps of one kind."""
    return [
        (names, message)
        for names, message in map(read, actions.publications)
        if kind is None or isinstance(message, kind)
    ]


def read(publication: Publication) -> tuple[dict[str, str], Any]:
    names = STAGE_WORK.match(publication.topic)
    assert names is not None
    return names, decode_frame(publication.payload, Work)[0]


@dataclass
class Running:
    """A request that a replica holds.

    Attributes:
        generated: Tokens so far, those before this attempt included.
    """

    open: Open
    opened: set[tuple[str, int]] = field(default_factory=set)
    generated: list[int] = field(default_factory=list)
    steps_to_first: int = 2


class ScriptedFog:
    """All nodes at once.

    Attributes:
        kept: Replica to the leading positions that it has kept, of whatever prompt.
    """

    def __init__(self, *replicas: Replica) -> None:
        self.replicas = {one.id: one for one in replicas}
        self.held: dict[str, dict[RequestKey, Reserve]] = {one.id: {} for one in replicas}
        self.waiting: dict[str, list[Reserve]] = {one.id: [] for one in replicas}
        self.rows: dict[str, list[RequestKey]] = {one.id: [] for one in replicas}
        self.running: dict[RequestKey, Running] = {}
        self.ended: dict[RequestKey, Running] = {}
        self.released: set[RequestKey] = set()
        self.received: list[tuple[dict[str, str], Any]] = []
        self.silent: set[str] = set()
        self.refusing: set[str] = set()
        self.kept: dict[str, int] = {}
        self.out: list[tuple[str, str, Event]] = []

    def take(self, publication: Publication) -> None:
        names, message = read(publication)
        self.received.append((names, message))
        if names["device"] in self.silent:
            return
        name = names["replica"]
        assert self.replicas[name].stages[int(names["stage"])].device == names["device"]
        match message:
            case Reserve() if message.key not in self.released:
                self._reserve(name, message)
            case Open():
                self._open(name, int(names["stage"]), message)
            case Release():
                self.release(message.key)
            case Resend():
                running = self.running.get(message.key) or self.ended.get(message.key)
                if running is not None:
                    self._tokens(names["device"], running, message.index)

    def step(self) -> None:
        """Give each running request its next token."""
        for key, running in list(self.running.items()):
            prefill = self.replicas[running.open.prefill_replica]
            decode = self.replicas[running.open.decode_replica]
            devices = {s.device for one in (prefill, decode) for s in one.stages}
            wanted = {(one.id, i) for one in (prefill, decode) for i in range(len(one.stages))}
            if running.opened != wanted or devices & self.silent:
                continue
            running.steps_to_first -= 1
            if running.steps_to_first > 0:
                continue
            source = prefill if running.steps_to_first == 0 else decode
            rows = self.rows[decode.id]
            if running.steps_to_first == 0:
                rows.append(key)
            elif prefill is not decode:
                self._give_back(prefill.id, key)  # Handed over.
            if running.steps_to_first < 0 and key not in rows[: decode.slots]:
                if running.steps_to_first % SAY_STEPS == SAY_STEPS - 1:
                    waiting = Waiting(request_id=key.request_id, attempt=key.attempt)
                    self.out.append((running.open.gateway, decode.stages[0].device, waiting))
                continue
            index = len(running.generated)
            running.generated.append(token_at(running.open.prompt_ids, index))
            self._tokens(source.stages[-1].device, running, index)
            if len(running.generated) == running.open.max_tokens:
                self.ended[key] = running
                self.release(key)

    def lose(self, key: RequestKey, kind: LossKind, sender: str) -> None:
        gateway = self.running[key].open.gateway
        self.release(key)
        lost = Lost(request_id=key.request_id, attempt=key.attempt, kind=kind, reason="scripted")
        self.out.append((gateway, sender, lost))

    def release(self, key: RequestKey) -> None:
        self.released.add(key)
        self._tell_times(self.running.pop(key, None))
        for name in self.replicas:
            self.waiting[name] = [w for w in self.waiting[name] if w.key != key]
            self.rows[name] = [row for row in self.rows[name] if row != key]
            self._give_back(name, key)

    def _tell_times(self, running: Running | None) -> None:
        if running is None or running.open.traceparent is None:
            return
        opened = running.open
        for name, stage in sorted(running.opened):
            times = StageTimes(
                request_id=opened.request_id, attempt=opened.attempt, replica=name, stage=stage
            )
            self.out.append((opened.gateway, self.replicas[name].stages[stage].device, times))

    def _give_back(self, name: str, key: RequestKey) -> None:
        if self.held[name].pop(key, None) is not None:
            waiting, self.waiting[name] = self.waiting[name], []
            for message in waiting:
                self._reserve(name, message, again=True)

    def forget(self, *devices: str) -> None:
        """Those devices were started again: what they held is gone."""
        for key, running in list(self.running.items()):
            names = {running.open.prefill_replica, running.open.decode_replica}
            if any(s.device in devices for n in names for s in self.replicas[n].stages):
                self.release(key)

    def _free(self, name: str, kind: ReserveKind) -> int:
        one, held = self.replicas[name], self.held[name].values()
        decodes = [h for h in held if h.kind != "prefill"]
        complete = [h for h in decodes if self._is_complete(h.key)]
        if kind == "prefill":
            prompts = [h for h in held if h.kind != "decode" and not self._is_complete(h.key)]
            return one.prefill_slots - len(prompts)
        if kind == "both":
            return one.slots - len(decodes)
        return one.slots + WAITING_ROWS - len(decodes if one.role is Role.BOTH else complete)

    def _has_room(self, name: str, kind: ReserveKind) -> bool:
        room = ROOM_TOKENS * (len(self.held[name]) + 1)
        return self._free(name, kind) > 0 and room <= self.replicas[name].kv_tokens

    def _is_complete(self, key: RequestKey) -> bool:
        return key in self.running and self.running[key].steps_to_first <= 0

    def _reserve(self, name: str, message: Reserve, *, again: bool = False) -> None:
        if name in self.refusing:
            self._answer(name, message, GrantState.REFUSED)
        elif message.key in self.held[name]:
            self._answer(name, message, GrantState.GRANTED)
        elif not self.waiting[name] and self._has_room(name, message.kind):
            self.held[name][message.key] = message
            self._answer(name, message, GrantState.GRANTED)
        else:
            if message.key not in {w.key for w in self.waiting[name]}:
                self.waiting[name].append(message)
            if not again:
                self._answer(name, message, GrantState.QUEUED)

    def _answer(self, name: str, message: Reserve, state: GrantState) -> None:
        asked = 0 if message.prefix is None else message.prefix.num_tokens
        granted = Granted(
            request_id=message.request_id,
            attempt=message.attempt,
            replica=name,
            kind=message.kind,
            state=state,
            kv_credit_bytes=4096,
            free_tokens=self.replicas[name].kv_tokens - ROOM_TOKENS * len(self.held[name]),
            free_slots=max(self._free(name, message.kind), 0),
            held_tokens=min(self.kept.get(name, 0), asked),
        )
        self.out.append((message.gateway, self.replicas[name].stages[0].device, granted))

    def _open(self, name: str, stage: int, message: Open) -> None:
        if message.key in self.released:
            return
        running = self.running.setdefault(message.key, Running(message))
        if message.prompt_ids:
            running.open = message
            running.generated = running.generated or list(message.generated_ids)
        running.opened.add((name, stage))
        opened = Opened(
            request_id=message.request_id, attempt=message.attempt, replica=name, stage=stage
        )
        device = self.replicas[name].stages[stage].device
        self.out.append((message.gateway, device, opened))

    def _tokens(self, sender: str, running: Running, index: int) -> None:
        opened, last = running.open, len(running.generated) - 1
        ends = len(running.generated) == opened.max_tokens
        rows = [
            TokenRow(
                opened.request_id,
                opened.attempt,
                i,
                running.generated[i],
                "length" if ends and i == last else None,
            )
            for i in range(index, last + 1)
        ]
        if rows:
            self.out.append((opened.gateway, sender, Tokens(rows=rows)))


Fault = Callable[[Any], list[float]]
"""Delay in seconds of each copy of a message that arrives."""


def perfect(message: Any) -> list[float]:
    return [0.0]


class Faults:
    """Loses, repeats, delays and reorders messages, the same way for the same seed."""

    def __init__(self, seed: int, share: float = 0.05) -> None:
        self._rng = random.Random(seed)
        self._share = share

    def __call__(self, message: Any) -> list[float]:
        lost, twice, late = (self._rng.random() < self._share for _ in range(3))
        if lost:
            return []
        delay = self._rng.uniform(0.1, 1.0) if late else 0.0
        return [delay, delay + 0.1] if twice else [delay]


class Run:
    """Gateways and a fog under one simulated clock.

    Attributes:
        tokens: What each client got.
        errors: How requests failed.
        on_token: Called with every token that a client gets.
    """

    def __init__(
        self,
        fog: ScriptedFog,
        *gateways: str,
        settings: DispatchSettings | None = None,
        fault: Fault = perfect,
    ) -> None:
        self.fog = fog
        self.now = 0.0
        self.fault = fault
        self.dispatchers = {
            name: Dispatcher("site", name, settings) for name in gateways or ("gw",)
        }
        self.tokens: dict[str, list[int]] = {}
        self.finished: dict[str, str] = {}
        self.errors: dict[str, EngineError] = {}
        self.on_token: Callable[[GeneratedToken], object] = lambda token: None
        self._late: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.see(view_of(*fog.replicas.values()))

    @property
    def dispatcher(self) -> Dispatcher:
        return next(iter(self.dispatchers.values()))

    def see(self, view: FogView) -> None:
        for dispatcher in self.dispatchers.values():
            self.apply(dispatcher.fog_changed(view, self.now))

    def submit(self, request: Generation, gateway: str | None = None) -> Actions:
        dispatcher = self.dispatchers[gateway] if gateway else self.dispatcher
        self.tokens[request.request_id] = []
        actions = dispatcher.submit(request, self.now)
        self.apply(actions)
        return actions

    def apply(self, actions: Actions) -> None:
        for publication in actions.publications:
            self._deliver(lambda p=publication: self.fog.take(p), publication)  # type: ignore[misc]
        for outcome in actions.outcomes:
            if isinstance(outcome, FailedOutcome):
                self.errors[outcome.request_id] = outcome.error
            else:
                assert outcome.token.index == len(self.tokens[outcome.request_id])
                assert outcome.request_id not in self.finished
                self.tokens[outcome.request_id].append(outcome.token.token_id)
                self.on_token(outcome.token)
                if outcome.token.finish_reason is not None:
                    self.finished[outcome.request_id] = outcome.token.finish_reason

    def settle(self) -> None:
        """Let all messages that are on their way now arrive."""
        while self.fog.out:
            out, self.fog.out = self.fog.out, []
            for gateway, sender, event in out:
                self._deliver(lambda g=gateway, s=sender, e=event: self._handle(g, s, e), event)  # type: ignore[misc]

    def advance(self, seconds: float) -> None:
        """Let time pass, step by step."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += STEP_SECONDS
            self._late.sort(key=lambda item: item[:2])
            while self._late and self._late[0][0] <= self.now:
                self._late.pop(0)[2]()
            self.settle()
            self.fog.step()
            self.settle()
            for dispatcher in self.dispatchers.values():
                self.apply(dispatcher.tick(self.now))
            self.settle()

    def advance_until(self, condition: Callable[[], bool], limit: float = 60.0) -> None:
        end = self.now + limit
        while not condition():
            assert self.now < end, f"not within {limit} s; errors: {self.errors}"
            self.advance(STEP_SECONDS)

    def _handle(self, gateway: str, sender: str, event: Event) -> None:
        self.apply(self.dispatchers[gateway].handle(sender, event, self.now))

    def _deliver(self, action: Callable[[], None], message: Any) -> None:
        for delay in self.fault(message):
            if delay <= 0:
                action()
            else:
                self._count += 1
                self._late.append((self.now + delay, self._count, action))

"""Devices without a broker: cores joined by a list, driven by a clock of their own.

Every message is encoded to bytes and decoded again, so a pipeline test exercises the codec.
The stand-in for a gateway asks for grants, opens, and collects tokens; it repeats what is
not answered, as the real one does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker import codec
from broker.events import Event, Granted, GrantState, Lost, Opened, Tokens
from broker.model_config import ModelConfig
from broker.placement import replica_id
from broker.plan import BatchSeconds, LayerRange, Plan, PlanState, Replica, Role, Stage
from broker.registry import parse_config
from broker.topics import GATEWAY_EVENTS, STAGE_CREDIT, STAGE_KV, STAGE_WORK
from broker.work import (
    Data,
    KvChunk,
    KvCredit,
    Open,
    Release,
    RequestKey,
    Resend,
    Reserve,
    ReserveKind,
    Sampling,
)
from nodes.blocks import Tensors
from nodes.compute import Pace
from nodes.context import StageSettings, UnexpectedMessageError
from nodes.device import DeviceCore
from nodes.executor import StageExecutor
from nodes.grammars import GrammarMaker
from nodes.outgoing import Timers, ToGateway, ToStage
from nodes.speculation import MOST_PROPOSED, Tally
from nodes.stage import StageCore
from nodes.weights import LayerWeights

GATEWAY = "gateway-1"
Deliver = Callable[[], None]


def make_replica(
    cuts: Sequence[int],
    devices: Sequence[str],
    role: Role,
    *,
    slots: int = 8,
    kv_tokens: int = 4096,
) -> Replica:
    """Return a replica whose stages end at ``cuts``, one device each."""
    starts = [0, *cuts[:-1]]
    ranges = [LayerRange(a, b) for a, b in zip(starts, cuts, strict=True)]
    stages = [
        Stage(
            device=device,
            layers=layers,
            embedding=index == 0,
            head=index == len(cuts) - 1,
            predicted_seconds=0.01,
            decode_seconds=[BatchSeconds(1, 0.01), BatchSeconds(8, 0.02)],
            hop_seconds=0.001,
        )
        for index, (device, layers) in enumerate(zip(devices, ranges, strict=True))
    ]
    return Replica(
        id=replica_id("rev", "float32", list(zip(devices, ranges, strict=True))),
        role=role,
        slots=slots,
        prefill_slots=slots,
        kv_tokens=kv_tokens,
        stages=stages,
    )


@dataclass
class Answer:
    """What the stand-in gateway knows of one request."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    prefill: Replica
    decode: Replica
    attempt: int = 0
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    granted: set[str] = field(default_factory=set)
    opened: set[tuple[str, int]] = field(default_factory=set)
    is_open: bool = False
    asked_at: float = -1e9
    credit: int = 0
    lost: list[Lost] = field(default_factory=list)


class SmallFog:
    """Some devices, one gateway stand-in, and a network that a test may disturb."""

    def __init__(
        self,
        manifest_config: Mapping[str, Any],
        source: Tensors,
        replicas: Sequence[Replica],
        *,
        chunk_tokens: int = 16,
        timers: Timers | None = None,
        disturb: random.Random | None = None,
        kv_chunk_bytes: int = 4096,
        pace: Pace = lambda cost: None,
        tick_seconds: float = 0.0,
        weights: str = "float32",
        kv_format: str = "float32",
        grammars: GrammarMaker | None = None,
        most_proposed: int = MOST_PROPOSED,
    ) -> None:
        self.config: ModelConfig = parse_config(manifest_config)
        self.replicas = list(replicas)
        self.now = 100.0
        self.step_seconds = 0.005
        self._tick_seconds = tick_seconds
        self.devices: dict[str, DeviceCore] = {}
        self.answers: dict[str, Answer] = {}
        self.rejected: list[str] = []
        self._disturb = disturb
        self._late: list[tuple[float, int, Deliver]] = []
        self._serial = 0
        self.plan = Plan(
            version=1,
            state=PlanState.ACTIVE,
            model="tiny",
            revision="rev",
            weights=weights,
            kv_format=kv_format,
            chunk_tokens=chunk_tokens,
            context_tokens=512,
            replicas=list(replicas),
        )
        settings = StageSettings(
            timers or Timers(repeat=0.2, repeats=40),
            kv_chunk_bytes,
            4 * kv_chunk_bytes,
            most_proposed,
        )
        for replica in replicas:
            for index, stage in enumerate(replica.stages):
                core = self.devices.setdefault(
                    stage.device, DeviceCore(stage.device, settings, pace)
                )
                held = LayerWeights(self.config, source, weights)
                for layer in range(stage.layers.start, stage.layers.end):
                    held.add(layer)
                if stage.embedding:
                    held.add_embedding()
                if stage.head:
                    held.add_head()
                executor = StageExecutor(
                    self.config,
                    stage.layers,
                    held,
                    embedding=stage.embedding,
                    head=stage.head,
                    kv_tokens=replica.kv_tokens,
                    chunk_tokens=chunk_tokens,
                    kv_format=kv_format,
                )
                core.hold(replica, index, executor, grammars if stage.head else None)
        for core in self.devices.values():
            core.learn(self.plan)

    def stages(self) -> list[StageCore]:
        """Return the stages of all devices."""
        return [stage for core in self.devices.values() for stage in core.stages.values()]

    @property
    def speculated(self) -> Tally:
        """What came of proposed ids in all replicas."""
        total = Tally()
        for core in self.devices.values():
            total.add(core.speculated)
        return total

    # --- the gateway stand-in ------------------------------------------------------------

    def ask(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        prefill: Replica,
        decode: Replica,
        *,
        max_tokens: int,
        sampling: Sampling | None = None,
    ) -> None:
        """Submit a request; `run` drives it."""
        self.answers[request_id] = Answer(
            tuple(prompt_ids), sampling or Sampling(), max_tokens, prefill, decode
        )

    def run(self, seconds: float = 300.0) -> None:
        """Drive everything until all answers are complete; fail after simulated time."""
        until = self.now + seconds
        while any(a.finish_reason is None for a in self.answers.values()):
            assert self.now < until, f"hangs: {self.unfinished()}"
            self.step()

    def unfinished(self) -> list[str]:
        """Return who has not finished, with how far it is."""
        return [
            f"{name}: {len(a.tokens)} tokens, attempt {a.attempt}, granted {a.granted}, "
            f"opened {len(a.opened)}"
            for name, a in self.answers.items()
            if a.finish_reason is None
        ]

    def step(self) -> None:
        """Let a little time pass: each device runs one job, late messages arrive."""
        self.now += self.step_seconds
        for item in sorted(i for i in self._late if i[0] <= self.now):
            self._late.remove(item)
            item[2]()
        for name, answer in self.answers.items():
            if answer.finish_reason is None:
                self._drive(name, answer)
        for device, core in self.devices.items():
            core.run_next(self._clock)
            core.tick(self.now)
            self._flush(device)

    def _clock(self) -> float:
        """Return the time; a computation that looks at it several times sees it pass."""
        self.now += self._tick_seconds
        return self.now

    def _drive(self, name: str, answer: Answer) -> None:
        if self.now - answer.asked_at < 0.5:
            return
        answer.asked_at = self.now
        if not answer.is_open:
            self._reserve(name, answer)
        else:
            self._open(name, answer)
            last = answer.decode.stages[-1]
            self._send(
                answer.decode,
                len(answer.decode.stages) - 1,
                last.device,
                Resend(
                    request_id=name,
                    attempt=answer.attempt,
                    gateway=GATEWAY,
                    index=len(answer.tokens),
                ),
            )

    def _reserve(self, name: str, answer: Answer) -> None:
        pairs = [(answer.prefill, ReserveKind.PREFILL), (answer.decode, ReserveKind.DECODE)]
        if answer.prefill.id == answer.decode.id:
            pairs = [(answer.prefill, ReserveKind.BOTH)]
        for replica, kind in pairs:
            if replica.id in answer.granted:
                continue
            message = Reserve(
                request_id=name,
                attempt=answer.attempt,
                gateway=GATEWAY,
                kind=kind,
                known_tokens=len(answer.prompt_ids) + len(answer.tokens),
                max_tokens=answer.max_tokens - len(answer.tokens),
            )
            self._send(replica, 0, replica.stages[0].device, message)

    def _open(self, name: str, answer: Answer) -> None:
        for replica in (answer.decode, answer.prefill):
            for index in reversed(range(len(replica.stages))):
                if (replica.id, index) in answer.opened:
                    continue
                outer = index in (0, len(replica.stages) - 1)
                start = answer.tokens if answer.attempt else []
                message = Open(
                    request_id=name,
                    attempt=answer.attempt,
                    gateway=GATEWAY,
                    prefill_replica=answer.prefill.id,
                    decode_replica=answer.decode.id,
                    num_prompt_tokens=len(answer.prompt_ids),
                    num_generated_tokens=len(start),
                    max_tokens=answer.max_tokens,
                    sampling=answer.sampling,
                    prompt_ids=answer.prompt_ids if outer else (),
                    generated_ids=tuple(start) if outer else (),
                    kv_credit_bytes=answer.credit,
                )
                self._send(replica, index, replica.stages[index].device, message)
            if answer.prefill.id == answer.decode.id:
                break

    def _event(self, sender: str, event: Event) -> None:
        if isinstance(event, Tokens):
            for row in event.rows:
                answer = self.answers[row.request_id]
                if row.attempt != answer.attempt or row.index != len(answer.tokens):
                    continue
                answer.tokens.append(row.token_id)
                answer.asked_at = self.now
                if row.finish_reason is not None:
                    answer.finish_reason = row.finish_reason
                    for replica in (answer.prefill, answer.decode):
                        self._send(
                            replica,
                            0,
                            replica.stages[0].device,
                            Release(request_id=row.request_id, attempt=row.attempt),
                        )
            return
        answer = self.answers[event.request_id]
        if event.attempt != answer.attempt or answer.finish_reason is not None:
            return
        if isinstance(event, Granted) and event.state is GrantState.GRANTED:
            answer.granted.add(event.replica)
            if event.replica == answer.decode.id:
                answer.credit = event.kv_credit_bytes
            if not answer.is_open and answer.granted >= {answer.prefill.id, answer.decode.id}:
                answer.is_open = True
                answer.asked_at = self.now
                self._open(event.request_id, answer)
        elif isinstance(event, Opened):
            answer.opened.add((event.replica, event.stage))
        elif isinstance(event, Lost):
            self.again(event.request_id, event)

    def again(self, request_id: str, lost: Lost | None = None) -> None:
        """Queue a request again, as the gateway does when an attempt is lost."""
        answer = self.answers[request_id]
        if lost is not None:
            answer.lost.append(lost)
        answer.attempt += 1
        answer.granted.clear()
        answer.opened.clear()
        answer.is_open = False

    # --- the network ---------------------------------------------------------------------

    def _flush(self, device: str) -> None:
        for message in self.devices[device].drain(self.now):
            if isinstance(message, ToGateway):
                frame = bytes(codec.encode_frame(message.header))
                header, _ = codec.decode_frame(frame, GATEWAY_EVENTS.message)
                self._carry(lambda h=header: self._event(device, h))  # type: ignore[misc]
            else:
                self._to_device(device, message)

    def _send(self, replica: Replica, stage: int, device: str, header: Data) -> None:
        self._to_device(GATEWAY, ToStage(replica.id, stage, device, header))

    def _to_device(self, sender: str, message: ToStage) -> None:
        frame = bytes(codec.encode_frame(message.header, message.tensor))
        union: Any = STAGE_WORK.message
        if isinstance(message.header, KvChunk):
            union = STAGE_KV.message
        elif isinstance(message.header, KvCredit):
            union = STAGE_CREDIT.message
        self._post(sender, message.device, (message.replica, message.stage), frame, union)

    def _post(
        self, sender: str, device: str, stage: tuple[str, int], frame: bytes, union: Any
    ) -> None:
        def deliver() -> None:
            header, tensor = codec.decode_frame(frame, union)
            core = self.devices.get(device)
            if core is None:
                return
            try:
                core.handle(sender, stage, header, tensor, self.now)
            except UnexpectedMessageError as error:
                self.rejected.append(str(error))
            self._flush(device)

        self._carry(deliver)

    def _carry(self, deliver: Deliver) -> None:
        """Deliver a little later, or as the disturbed network will: 5 % of each kind."""
        delay = 0.001
        copies = 1
        if self._disturb is not None:
            draw = self._disturb.random()
            if draw < 0.05:
                return
            if draw < 0.10:
                copies = 2
            elif draw < 0.20:
                delay = self._disturb.uniform(0.0, 0.4)
        for _ in range(copies):
            self._serial += 1
            self._late.append((self.now + delay, self._serial, deliver))


def open_keys(fog: SmallFog) -> dict[str, list[RequestKey]]:
    """Return, per device, requests whose KV is still held."""
    return {
        device: [request.open.key for stage in core.stages.values() for request in stage.requests]
        for device, core in fog.devices.items()
    }

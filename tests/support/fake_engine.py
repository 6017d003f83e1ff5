"""An engine without a fog: it answers each request with a script of token ids."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from broker.control import DeviceControl, ModelManifest
from broker.events import Logprobs
from broker.identity import ModelIdentity
from broker.metrics import Sample
from broker.plan import Plan
from broker.traffic import Traffic
from broker.whatif import Finding, WhatIf, WhatIfAnswer
from gateway.course import Stretch
from gateway.fogview import FogView
from gateway.metrics import samples
from gateway.owners import UnknownDeviceError, control_body
from gateway.requests import EngineError, GeneratedToken, Generation, Readiness, Written
from gateway.totals import Totals

Script = Callable[[Generation], Sequence[int]]


class FakeEngine:
    """Implements `gateway.requests.Engine`.

    Attributes:
        script: The ids of an answer; a shorter script than ``max_tokens`` ends with EOS.
        submitted: What was asked for.
        closed: Request ids whose iterator was closed or ran out.
        completed: Request ids whose iterator gave its last token.
        hold_after: Tokens after which an answer waits for `go_on`; None: never.
        logprobs: Of a token, where they are asked for.
        cached_tokens: Of each prompt.
        error: Raised instead of token ``error_at``.
        journal: What `written` finds, by entry.
        taken_over: The entries of each answer that went on.
        active: The plan that serves.
        unfinished: Requests of a model that have not ended, by its name.
        stretches: What requests did, by their ids.
        asked: What-if questions.
        found: What becomes of them.
        unasked: Raised instead.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.submitted: list[Generation] = []
        self.closed: list[str] = []
        self.completed: list[str] = []
        self.published: list[ModelManifest] = []
        self.withdrawn: list[str] = []
        self.expected: list[str] = []
        self.active: Plan | None = None
        self.unfinished: dict[str, int] = {}
        self.hold_after: int | None = None
        self.holding = asyncio.Event()
        self.go_on = asyncio.Event()
        self.all_closed = asyncio.Event()
        self.logprobs: Callable[[int], Logprobs] = lambda token_id: Logprobs(-0.5)
        self.cached_tokens = 0
        self.error: Exception | None = None
        self.error_at = 0
        self.largest_tokens: int | None = None
        self.computing: tuple[str, ...] = ("x86_64 AVX512",)
        self.ready = Readiness(True, "a plan is active")
        self.controls = {"pi": DeviceControl()}
        self.states = {"pi": "ready"}
        self.journal: dict[str, Written] = {}
        self.taken_over: list[Sequence[str]] = []
        self.traffic = Traffic()
        self.stretches: dict[str, tuple[Stretch, ...]] = {}
        self.asked: list[WhatIf] = []
        self.found = WhatIfAnswer(
            request_id="", finding=Finding.IMPOSSIBLE, reason="the model does not fit"
        )
        self.unasked: EngineError | None = None

    async def generate(self, generation: Generation) -> AsyncIterator[GeneratedToken]:
        self.submitted.append(generation)
        try:
            ids = list(self.script(generation))[: generation.max_tokens]
            for index, token_id in enumerate(ids):
                if index < len(generation.generated):
                    continue
                if self.error is not None and index == self.error_at:
                    raise self.error
                if index == self.hold_after:
                    self.holding.set()
                    await self.go_on.wait()
                await asyncio.sleep(0)
                is_told = generation.sampling.top_logprobs is not None
                yield GeneratedToken(
                    index,
                    token_id,
                    self._finish(generation, ids, index),
                    self.logprobs(token_id) if is_told else None,
                    self.cached_tokens if index == 0 else 0,
                )
            self.completed.append(generation.request_id)
        finally:
            self.closed.append(generation.request_id)
            if len(self.closed) == len(self.submitted):
                self.all_closed.set()

    @staticmethod
    def _finish(generation: Generation, ids: Sequence[int], index: int) -> str | None:
        sampling = generation.sampling
        if ids[index] in sampling.eos_token_ids and not sampling.ignore_eos:
            return "stop"
        return "length" if index + 1 == generation.max_tokens else None

    async def written(self, entry: str) -> Written | None:
        return self.journal.get(entry)

    async def take_over(self, entries: Sequence[str]) -> int:
        self.taken_over.append(entries)
        return len(self.taken_over)

    def largest_request_tokens(self, model: ModelIdentity | None = None) -> int | None:
        return self.largest_tokens

    def arithmetics(self, model: ModelIdentity | None = None) -> tuple[str, ...]:
        return self.computing

    def active_plan(self) -> Plan | None:
        return self.active

    def num_unfinished(self, manifest: ModelManifest) -> int:
        return self.unfinished.get(manifest.name, 0)

    def model_state(self, manifest: ModelManifest) -> dict[str, Any]:
        state = "serving" if manifest.in_use else "added"
        return {"state": state, "detail": "", "progress": None, "unfinished": 0}

    def fog_plan(self) -> dict[str, Any]:
        return {"version": 3, "state": "active", "replicas": []}

    def ask_of_device(
        self, device: str, change: Callable[[DeviceControl], DeviceControl | None]
    ) -> dict[str, Any]:
        if device not in self.controls:
            raise UnknownDeviceError(f"no device {device} is known")
        control = change(self.controls[device])
        if control is None:
            del self.controls[device]
        else:
            self.controls[device] = control
        return control_body(device, control)

    def utc_offset_of(self, device: str) -> int:
        return 7200 if device == "pi" else 0

    def plan_history(self) -> list[dict[str, Any]]:
        return [{"version": 3, "outcome": "adopted"}]

    def courses(self) -> dict[str, tuple[Stretch, ...]]:
        return self.stretches

    def devices(self) -> list[dict[str, Any]]:
        return [{"id": device, "state": state} for device, state in self.states.items()]

    async def what_if(self, asked: WhatIf) -> WhatIfAnswer:
        self.asked.append(asked)
        if self.unasked is not None:
            raise self.unasked
        return replace(self.found, request_id=asked.request_id)

    def readiness(self) -> Readiness:
        return self.ready

    def expect_models(self, names: Iterable[str]) -> None:
        self.expected = list(names)

    def samples(self, others: Traffic) -> Iterator[Sample]:
        return samples(Totals(), FogView(), self.ready, self.traffic + others, is_connected=True)

    def publish_model(self, manifest: ModelManifest) -> None:
        self.published.append(manifest)

    def withdraw_model(self, manifest: ModelManifest) -> None:
        self.withdrawn.append(manifest.name)

"""The real gateway's dispatcher over real stages, with a clock of their own and no broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from broker.control import DeviceState, DeviceStatus
from broker.events import Event, Logprobs
from broker.plan import Loaded, LoadState
from broker.topics import STAGE_WORK
from broker.work import Sampling
from gateway.dispatch import Actions, Dispatcher, FailedOutcome
from gateway.fogview import FogView
from gateway.ledger import DispatchSettings
from gateway.requests import EngineError, Generation
from gateway.tracing.timeline import Timeline
from tests.support.pipeline import GATEWAY, SmallFog


class SimulatedFog(SmallFog):
    """A whole fog but for HTTP, MQTT and the planner.

    Attributes:
        tokens: Tokens that the client of each request got.
        logprobs: Theirs, None where they were not asked for.
        finished: Finish reason or error of each request that ended.
        traces: Of traced requests, once all is known of them.
    """

    def __init__(self, *args: Any, dispatch: DispatchSettings | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokens: dict[str, list[int]] = {}
        self.logprobs: dict[str, list[Logprobs | None]] = {}
        self.finished: dict[str, str | EngineError] = {}
        self.traces: list[Timeline] = []
        self.dispatcher = Dispatcher("local", GATEWAY, dispatch)
        self._view = FogView().with_plan(self.plan)
        for device in self.devices:
            self._appear(device, session=1)
        self._ticked_at = self.now

    def submit(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        """Give a request to the dispatcher."""
        self.tokens[request_id] = []
        generation = Generation(
            request_id=request_id,
            prompt_ids=tuple(prompt_ids),
            max_tokens=max_tokens,
            sampling=sampling or Sampling(),
            timeline=timeline,
        )
        self._act(self.dispatcher.submit(generation, self.now))

    def cancel(self, request_id: str) -> None:
        """The client went away."""
        self._act(self.dispatcher.cancel(request_id, self.now))

    def lose(self, device: str) -> None:
        """A device dies, and its last will says so."""
        self.devices.pop(device)
        lost = DeviceStatus(state=DeviceState.LOST, session=1)
        self._view = self._view.with_status(device, lost, self.now)
        self._act(self.dispatcher.fog_changed(self._view, self.now))

    def freeze(self, device: str) -> None:
        """A device stops answering and nobody is told."""
        self.devices.pop(device)

    def run(self, seconds: float = 600.0) -> None:
        """Drive everything until every request has ended; fail after simulated time."""
        until = self.now + seconds
        while len(self.finished) < len(self.tokens):
            waiting = {n: self.dispatcher.phase(n) for n in self.tokens if n not in self.finished}
            assert self.now < until, f"hangs: {waiting}"
            self.step()

    def step(self) -> None:
        """Let a little time pass."""
        super().step()
        if self.now - self._ticked_at >= 0.05:
            self._ticked_at = self.now
            self._act(self.dispatcher.tick(self.now))

    def _appear(self, device: str, session: int) -> None:
        status = DeviceStatus(state=DeviceState.READY, session=session)
        stages = [f"{replica}/{index}" for replica, index in self.devices[device].stages]
        loaded = Loaded(session=session, version=1, state=LoadState.LOADED, stages=stages)
        self._view = self._view.with_status(device, status, self.now)
        self._view = self._view.with_loaded(device, loaded, self.now)
        self._act(self.dispatcher.fog_changed(self._view, self.now))

    def _event(self, sender: str, event: Event) -> None:
        self._act(self.dispatcher.handle(sender, event, self.now))

    def _act(self, actions: Actions) -> None:
        for publication in actions.publications:
            names = STAGE_WORK.match(publication.topic)
            assert names is not None, f"a dispatcher speaks to stages only: {publication.topic}"
            assert names["sender"] == GATEWAY
            self._post(
                GATEWAY,
                names["device"],
                (names["replica"], int(names["stage"])),
                bytes(publication.payload),
                STAGE_WORK.message,
            )
        self.traces += actions.traces
        for outcome in actions.outcomes:
            assert outcome.request_id not in self.finished, "something after the end"
            if isinstance(outcome, FailedOutcome):
                self.finished[outcome.request_id] = outcome.error
                continue
            answer = self.tokens[outcome.request_id]
            assert outcome.token.index == len(answer), "a gap or a repeat"
            answer.append(outcome.token.token_id)
            self.logprobs.setdefault(outcome.request_id, []).append(outcome.token.logprobs)
            if outcome.token.finish_reason is not None:
                self.finished[outcome.request_id] = outcome.token.finish_reason

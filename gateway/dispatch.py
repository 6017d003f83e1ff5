"""From the queue to the last token: decides everything about requests, touches nothing.

Pure: events and the time come in, publications and outcomes go out. The same calls give the
same answers, so a whole fog can be simulated. It knows nothing of HTTP, text, connections or
asyncio; `gateway.engine` is its shell.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from broker.events import Event, Granted, Lost, Opened, StageTimes, Tokens, Waiting
from broker.plan import Replica
from gateway.admission import Admission
from gateway.attempt import Binding
from gateway.course import Stretch
from gateway.delivery import Delivery
from gateway.fogview import FogView
from gateway.ledger import Actions, DispatchSettings, FailedOutcome, Ledger, Outcome, TokenOutcome
from gateway.lifecycle import Event as Turn
from gateway.lifecycle import Phase
from gateway.measures import Measures
from gateway.requests import (
    DeadlineExceededError,
    EngineError,
    Generation,
    GenerationFailedError,
    NotReadyError,
    QueueFullError,
    TooLargeError,
)
from gateway.routing import largest_request_tokens

__all__ = [
    "Actions",
    "DispatchSettings",
    "Dispatcher",
    "FailedOutcome",
    "Outcome",
    "TokenOutcome",
]

LONGEST_RETRY_SECONDS: Final = 60


class Dispatcher:
    """Every request of one gateway.

    Each method that takes ``now`` (seconds of any steady clock) and is not a question
    returns the actions that follow.
    """

    def __init__(
        self,
        site: str,
        gateway: str,
        settings: DispatchSettings | None = None,
        measures: Measures | None = None,
    ) -> None:
        self.measures = measures or Measures()
        self._ledger = Ledger(site, gateway, settings or DispatchSettings(), self.measures)
        self._delivery = Delivery(self._ledger)
        self._admission = Admission(self._ledger, self._delivery.begin)

    # --- what happens ------------------------------------------------------------------------

    def submit(self, generation: Generation, now: float) -> Actions:
        """Queue a request.

        Raises:
            QueueFullError: Too many requests wait.
            TooLargeError: No replica of the plan can hold it.
            NotReadyError: It has a grammar, which no replica of the plan can follow.
            ValueError: No prompt, no token to generate, or an id that is in use.
        """
        if not generation.prompt_ids or generation.max_tokens <= len(generation.generated):
            raise ValueError("a generation needs a prompt and at least one token to generate")
        if generation.request_id in self._ledger.requests:
            raise ValueError(f"request id {generation.request_id} is in use")
        if error := self._too_large(len(generation.prompt_ids), generation.max_tokens):
            raise error
        if generation.sampling.grammar and (reason := self._lacks_grammars()):
            raise NotReadyError(reason)
        if self.num_waiting >= self._ledger.settings.queue_limit:
            raise QueueFullError(
                f"{self.num_waiting} requests wait already, which is this gateway's limit",
                self._retry_after_seconds(now),
            )
        self._ledger.add(generation, now)
        return self._actions(now)

    def cancel(self, request_id: str, now: float) -> Actions:
        """Free a request everywhere; nothing if it has ended already."""
        request = self._ledger.requests.get(request_id)
        if request is not None:
            self._ledger.end(request, Turn.CANCELLED, "cancelled by the client", now)
        return self._actions(now)

    def handle(self, sender: str, event: Event, now: float) -> Actions:
        """Take in what the node ``sender`` says; the broker vouches for the name."""
        self._ledger.liveness.heard(sender, now)
        match event:
            case Tokens():
                for row in event.rows:
                    self._delivery.token(sender, row, now)
            case Granted():
                self._admission.granted(sender, event, now)
            case Opened():
                self._delivery.opened(sender, event, now)
            case Waiting():
                self._delivery.waiting(sender, event, now)
            case Lost():
                self._delivery.lost(sender, event, now)
            case StageTimes():
                self._ledger.told(sender, event)
        return self._actions(now)

    def heard(self, device: str, now: float) -> None:
        """A device said something, of whichever request."""
        self._ledger.liveness.heard(device, now)

    def reported(self, device: str, now: float) -> None:
        """A device has sent telemetry."""
        self._ledger.liveness.reported(device, now)

    def fog_changed(self, view: FogView, now: float) -> Actions:
        """Take in what is known of the fog now; attempts on lost stages are queued again."""
        ledger = self._ledger
        for device in view.devices.values():
            ledger.liveness.heard(device.id, device.seen_at)
        ledger.view = view
        ledger.complete = view.complete_replicas
        ledger.largest_complete = largest_request_tokens(ledger.complete)
        ledger.room_changed = True
        planned = {replica.id for replica in view.replicas}
        for request in list(ledger.requests.values()):
            binding = request.binding
            if binding is None:
                error = self._too_large(request.known_tokens, request.remaining_tokens)
                if error is not None:
                    failed = GenerationFailedError(str(error)) if request.generated else error
                    ledger.fail(request, failed, now)
                continue
            decodes = request.phase is Phase.DECODE
            lost = self._lost_device(binding, (binding.decode,) if decodes else binding.replicas)
            if lost is not None:
                ledger.requeue(request, f"device {lost} was lost", now, whole=True)
            elif request.phase is Phase.RESERVING and not planned.issuperset(
                replica.id for replica in binding.replicas
            ):
                # Attempts that run already may end there: the replica drains.
                ledger.requeue(request, "the replica left the plan", now, counts=False)
        return self._actions(now)

    def tick(self, now: float) -> Actions:
        """Run every timer that is due."""
        self._ledger.repeat_releases(now)
        self._ledger.close_traces(now)
        for request in list(self._ledger.requests.values()):
            deadline = request.generation.deadline_seconds
            if deadline is not None and now - request.submitted_at >= deadline:
                error: EngineError = DeadlineExceededError(f"the deadline of {deadline:g} s passed")
                self._ledger.fail(request, error, now)
            elif request.phase in {Phase.QUEUED, Phase.RESERVING}:
                self._admission.tick(request, now)
            else:
                self._delivery.tick(request, now)
        # A wait may be over, or what is believed of other gateways may have become stale.
        self._ledger.room_changed = True
        return self._actions(now)

    # --- what is known -----------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Requests that no replica has taken yet."""
        return len(self._ledger.queue) + (self._ledger.reserving is not None)

    @property
    def num_running(self) -> int:
        """Requests that stages hold."""
        return len(self._ledger.requests) - self.num_waiting

    @property
    def is_idle(self) -> bool:
        """Whether `tick` would do nothing, now and later."""
        return self._ledger.is_idle

    @property
    def dropped(self) -> Counter[str]:
        """How many events were ignored, by reason."""
        return self._ledger.dropped

    @property
    def arithmetics(self) -> tuple[str, ...]:
        """The ways in which devices of the serving plan compute, each once."""
        return self._ledger.view.arithmetics

    def phase(self, request_id: str) -> Phase | None:
        """Return where a live request is; None when it has ended or never was."""
        request = self._ledger.requests.get(request_id)
        return request.phase if request is not None else None

    def courses(self, now: float) -> dict[str, tuple[Stretch, ...]]:
        """Return what requests did, by their ids: the live ones and the latest that ended."""
        return self._ledger.courses(now)

    def largest_request_tokens(self) -> int | None:
        """Return prompt plus answer that the plan can hold; None without a plan."""
        plan = self._ledger.view.serving
        if plan is None:
            return None
        return min(largest_request_tokens(plan.replicas), plan.context_tokens)

    # --- helpers -----------------------------------------------------------------------------

    def _actions(self, now: float) -> Actions:
        while self._ledger.room_changed:
            self._ledger.room_changed = False
            self._admission.pump(now)
        return self._ledger.take_actions()

    def _lost_device(self, binding: Binding, replicas: tuple[Replica, ...]) -> str | None:
        """Return a device of ``replicas`` that is gone or was started again."""
        present = self._ledger.view.sessions(replicas)
        for replica in replicas:
            for stage in replica.stages:
                if present.get(stage.device) != binding.sessions.get(stage.device):
                    return stage.device
        return None

    def _too_large(self, known_tokens: int, max_tokens: int) -> TooLargeError | None:
        largest = self.largest_request_tokens()
        total = known_tokens + max_tokens
        if largest is None or total <= largest:
            return None
        return TooLargeError(
            f"{known_tokens} tokens and an answer of up to {max_tokens} are {total} in all; "
            f"the largest request that fits has {largest}",
            largest,
        )

    def _lacks_grammars(self) -> str | None:
        """Return why nobody can choose tokens by a grammar; None: somebody can, or no plan is."""
        view = self._ledger.view
        if not view.complete_replicas or any(map(view.knows_grammars, view.complete_replicas)):
            return None
        names = dict.fromkeys(replica.stages[-1].device for replica in view.complete_replicas)
        return (
            f"{', '.join(names)}, where tokens are chosen, cannot hold an answer to a grammar; "
            "install the release of the gateway there"
        )

    def _retry_after_seconds(self, now: float) -> int:
        """Estimate when a quarter of the queue will be through."""
        per_second = self.measures.requests_per_second(now) or 1.0
        seconds = math.ceil(self.num_waiting / 4 / per_second)
        return min(max(seconds, 1), LONGEST_RETRY_SECONDS)

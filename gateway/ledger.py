"""The requests of one gateway, the order in which they wait, and how each of them ends. Pure.

`gateway.admission` and `gateway.delivery` decide; this is what they share.
"""

from __future__ import annotations

import zlib
from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.events import StageTimes
from broker.liveness import Liveness
from broker.plan import Replica
from broker.transport import Publication
from broker.work import Data, RequestKey
from gateway.attempt import Address, Postbox, Request, master_of
from gateway.course import MOST_ENDED, Stretch, stretches
from gateway.fogview import FogView
from gateway.lifecycle import Event, Phase
from gateway.measures import Measures
from gateway.occupancy import Occupancy
from gateway.prefixes import Prefixes
from gateway.releases import Releases
from gateway.requests import EngineError, GeneratedToken, Generation, GenerationFailedError
from gateway.routing import Load, Policy
from gateway.tracing.pending import PendingTraces
from gateway.tracing.timeline import Timeline


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """Limits and times of the dispatcher; all times in seconds.

    Attributes:
        prefix_cache: Whether KV of prompts is kept for those that begin alike.
        queue_limit: Requests that may wait; beyond it `QueueFullError`.
        queue_seconds: How long a request waits while no complete replica can hold it.
        repeat_seconds, longest_repeat_seconds: First and largest gap between repeats.
        grant_wait_seconds: How long one grant is held while the other is not given.
        answer_seconds: How long a master may leave `Reserve` unanswered.
        stall_seconds: Without a new token for that long, ask for it again.
        quiet_seconds: Without a new token for that long the attempt is given up if one of
            its devices is silent and others can take the request (`broker.liveness`).
        silence_seconds: Without a new token for that long the attempt is given up; added
            to it is ``patience`` times what prefill or a step takes by measured rates.
        max_losses: Attempts that the fog may lose or refuse before the request fails.
        suspect_seconds: How long a replica that lost an attempt is avoided.
    """

    policy: Policy = Policy.LEAST_ADDED
    prefix_cache: bool = True
    queue_limit: int = 256
    queue_seconds: float = 120.0
    repeat_seconds: float = 0.5
    longest_repeat_seconds: float = 4.0
    grant_wait_seconds: float = 2.0
    answer_seconds: float = 10.0
    stall_seconds: float = 2.0
    quiet_seconds: float = 2.0
    silence_seconds: float = 20.0
    patience: float = 4.0
    max_losses: int = 20
    suspect_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.queue_limit < 1:
            raise ValueError("queue_limit must be at least 1")
        for name in ("queue_seconds", "repeat_seconds", "stall_seconds", "silence_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0")


@dataclass(frozen=True, slots=True)
class TokenOutcome:
    """The next token of an answer."""

    request_id: str
    token: GeneratedToken


@dataclass(frozen=True, slots=True)
class FailedOutcome:
    """The request ended without (the rest of) an answer."""

    request_id: str
    error: EngineError


Outcome = TokenOutcome | FailedOutcome


@dataclass(slots=True)
class Actions:
    """What the shell must do: publish, tell the clients, and export traces."""

    publications: list[Publication] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    traces: list[Timeline] = field(default_factory=list)


class Ledger:
    """All live requests.

    Attributes:
        requests: Every live request by id, in order of submission.
        queue: Those that wait, oldest first, whenever they were queued.
        reserving: The one that asks masters for room. Only one does at a time, so that this
            gateway never holds one replica's last slot while it waits for another's.
        complete: Replicas of which every stage answers.
        largest_complete: Tokens of the largest request that some pair of them can hold.
        room_changed: Something that may let the next request go ahead has happened.
        dropped: What was ignored, by reason.
        traces: Traced requests, until their stages have told what they took.
    """

    def __init__(
        self, site: str, gateway: str, settings: DispatchSettings, measures: Measures
    ) -> None:
        self.gateway = gateway
        self.settings = settings
        self.measures = measures
        self.occupancy = Occupancy(measures)
        self.prefixes = Prefixes(is_on=settings.prefix_cache)
        self.liveness = Liveness()
        self.view = FogView()
        self.complete: tuple[Replica, ...] = ()
        self.largest_complete = 0
        self.requests: dict[str, Request] = {}
        self.queue: list[Request] = []
        self.reserving: Request | None = None
        self.room_changed = False
        self.dropped: Counter[str] = Counter()
        self.traces = PendingTraces()
        self._postbox = Postbox(site, gateway)
        self._releases = Releases(self._postbox)
        self._num_submitted = 0
        self._ended: OrderedDict[str, tuple[Stretch, ...]] = OrderedDict()
        self._actions = Actions()

    # --- what the shell will do --------------------------------------------------------------

    def take_actions(self) -> Actions:
        """Return the actions since the last call."""
        actions, self._actions = self._actions, Actions()
        return actions

    def send(self, address: Address, message: Data) -> None:
        """Send one message to a stage."""
        self._actions.publications.append(self._postbox.to_stage(address, message))

    def deliver(self, request: Request, token: GeneratedToken) -> None:
        """Give the client its next token."""
        self._actions.outcomes.append(TokenOutcome(request.id, token))

    # --- beginnings and endings --------------------------------------------------------------

    def add(self, generation: Generation, now: float) -> None:
        """Queue a new request behind all others."""
        request = Request(
            generation, self._num_submitted, now, generated=list(generation.generated)
        )
        self._num_submitted += 1
        self.requests[request.id] = request
        if request.timeline is not None:
            request.timeline.submitted(now)
            self.traces.add(request.id, request.timeline)
        self._enqueue(request)

    def requeue(
        self, request: Request, reason: str, now: float, *, counts: bool = True, whole: bool = False
    ) -> None:
        """End the attempt and queue the request again, in the order of arrival.

        With ``counts`` the fog lost or refused the attempt; after too many of those the
        request fails. With ``whole`` a stage is gone, so every other one is told, since
        its master may not be able to.
        """
        request.num_lost += counts
        self.measures.totals.lost_attempts += counts
        if request.num_lost > self.settings.max_losses:
            message = f"given up after {request.num_lost} lost attempts, the last one: {reason}"
            self.fail(request, GenerationFailedError(message), now)
            return
        self._release(request, reason, now, whole=whole)
        if request.timeline is not None:
            request.timeline.lost(now)
        if request.phase is Phase.RESERVING:
            request.num_unbound += 1
            request.not_before = now + self._back_off_seconds(request)
        else:
            request.num_unbound = 0
        request.advance(Event.ATTEMPT_LOST, now)
        request.binding = None
        self._enqueue(request)

    def fail(self, request: Request, error: EngineError, now: float) -> None:
        """End the request with an error for its client."""
        self._actions.outcomes.append(FailedOutcome(request.id, error))
        if request.timeline is not None:
            request.timeline.error = type(error).__name__
        self.end(request, Event.FAILED, "the request failed", now)

    def end(self, request: Request, event: Event, reason: str, now: float) -> None:
        """Free the request everywhere and forget it."""
        if event is not Event.FAILED and len(request.generated) > request.first_index:
            self._learn_kept(request)
        if event is not Event.STOPPED:
            why = "error" if event is Event.FAILED else "abort"
            self.measures.totals.ended(why, now - request.submitted_at)
        self._release(request, reason, now)
        if request.phase is Phase.QUEUED:
            self.queue.remove(request)
        request.advance(event, now)
        if request.timeline is not None:
            request.timeline.ended(request.phase.name.lower(), now)
        request.binding = None
        del self.requests[request.id]
        self._ended[request.id] = stretches(request.turns, request.submitted_at, now)
        if len(self._ended) > MOST_ENDED:
            self._ended.popitem(last=False)

    # --- attempts that are over --------------------------------------------------------------

    def stray(self, key: RequestKey, sources: Sequence[Address], now: float) -> None:
        """A stage still holds an attempt that is over: release it again."""
        self.dropped["event of an ended attempt"] += 1
        self._actions.publications += self._releases.stray(key, sources, now)

    def told(self, sender: str, times: StageTimes) -> None:
        """A stage says what a traced attempt took."""
        if not self.traces.tell(sender, times):
            self.dropped["times of no traced attempt"] += 1

    def close_traces(self, now: float) -> None:
        """Hand out traces of which all is known that will be."""
        self._actions.traces += self.traces.take_due(now)

    def repeat_releases(self, now: float) -> None:
        """Send releases again that may have been lost."""
        self._actions.publications += self._releases.tick(now)

    @property
    def is_idle(self) -> bool:
        """Whether no timer runs."""
        return not self.requests and not self._releases.has_work and self.traces.is_empty

    def courses(self, now: float) -> dict[str, tuple[Stretch, ...]]:
        """Return what requests did, by their ids: the live ones and the latest that ended."""
        live = {
            request.id: stretches(request.turns, request.submitted_at, now)
            for request in self.requests.values()
        }
        return {**self._ended, **live}

    # --- look-ups ----------------------------------------------------------------------------

    def current(self, key: RequestKey) -> Request | None:
        """Return the request if ``key`` names its present attempt."""
        request = self.requests.get(key.request_id)
        return request if request is not None and request.attempt == key.attempt else None

    def masters_over(self, device: str) -> list[Address]:
        """Return the masters of the replicas that a device belongs to."""
        return [
            master_of(replica)
            for replica in self.view.replicas
            if device in {stage.device for stage in replica.stages}
        ]

    def loads(
        self, replicas: Sequence[Replica], now: float, without: Request | None = None
    ) -> list[Load]:
        """Return the load of ``replicas``, perhaps as if one request were not there."""
        others = (request for request in self.requests.values() if request is not without)
        return self.occupancy.loads(replicas, others, now)

    def usable(self, request: Request, loads: Sequence[Load]) -> Sequence[Load]:
        """Return the loads of replicas that can carry out what a request asks for."""
        if not request.generation.sampling.grammar:
            return loads
        return [load for load in loads if self.view.knows_grammars(load.replica)]

    def answering(self, now: float) -> tuple[Replica, ...]:
        """Return the complete replicas of which no device is silent; all, if there is none."""
        found = tuple(r for r in self.complete if self.silent_device((r,), now) is None)
        return found or self.complete

    def silent_device(self, replicas: Sequence[Replica], now: float) -> str | None:
        """Return a device of ``replicas`` that has been silent for longer than usual."""
        for replica in replicas:
            for stage in replica.stages:
                if self.liveness.silent_seconds(stage.device, now) is not None:
                    return stage.device
        return None

    def replaceable_device(self, replicas: Sequence[Replica], now: float) -> str | None:
        """Return the silent device of ``replicas`` if requests can go on without it."""
        device = self.silent_device(replicas, now)
        if device is None:
            return None
        needed = {stage.device for replica in self.answering(now) for stage in replica.stages}
        return None if device in needed else device

    def suspect(self, replica: Replica, now: float) -> None:
        """Avoid a replica for a while."""
        self.occupancy.suspect(replica.id, now + self.settings.suspect_seconds)

    # --- helpers -----------------------------------------------------------------------------

    def _enqueue(self, request: Request) -> None:
        insort(self.queue, request, key=lambda queued: queued.order)
        self.room_changed = True

    def _release(self, request: Request, reason: str, now: float, *, whole: bool = False) -> None:
        """Free the attempt through both masters, or at every stage that still answers."""
        self.room_changed = True
        if self.reserving is request:
            self.reserving = None
        binding = request.binding
        if binding is None:
            return
        targets = [master_of(replica) for replica in binding.replicas]
        if whole:
            present = self.view.sessions(binding.replicas)
            targets = [
                address
                for address in binding.stages()
                if address.device in present
                and present[address.device] == binding.sessions.get(address.device)
            ]
        self._actions.publications += self._releases.end(request.key, targets, reason, now)

    def _learn_kept(self, request: Request) -> None:
        """The replicas of an attempt keep how its prompt begins."""
        if request.binding is not None and request.prefix is not None:
            for replica in request.binding.replicas:
                self.prefixes.learn(replica.id, request.prefix, request.prefix.num_tokens)

    def _back_off_seconds(self, request: Request) -> float:
        """Return the wait until room is asked for again; it differs between gateways.

        Two gateways that gave way to each other must not meet again at the same moment.
        A hash instead of a random number: the same run gives the same times.
        """
        text = f"{self.gateway}/{request.id}/{request.attempt}"
        share = zlib.crc32(text.encode()) / 2**32
        return min(0.1 * 2.0 ** min(request.num_unbound, 5), 2.0) * (0.5 + share)

"""One dispatcher for each model: its own queue, its own replicas, its own measurements. Pure.

Requests of different models never wait for each other here. What arrives from the bus goes to the
dispatcher that knows the request.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Final

from broker.control import ModelManifest
from broker.events import Event, Tokens
from broker.identity import ModelIdentity, identity
from gateway.course import Stretch
from gateway.dispatch import Actions, Dispatcher, DispatchSettings
from gateway.fogview import FogView
from gateway.measures import Measures
from gateway.requests import Generation
from gateway.totals import Totals

_LATELY_SECONDS: Final = 600.0
_COUNTED: Final = 4096
_REMEMBERED: Final = 20_000
"""Requests of which something may still arrive; as many as `gateway.releases` remembers."""


class Desks:
    """The dispatchers of one gateway.

    Args:
        settings: Of each dispatcher.

    Attributes:
        totals: What requests of all models experienced.
    """

    def __init__(self, site: str, gateway: str, settings: DispatchSettings | None = None) -> None:
        self._site, self._gateway, self._settings = site, gateway, settings
        # For whichever model the fog serves, where this gateway has none of its own.
        self.totals = Totals()
        self._plain = self._new()
        self._by_model: dict[ModelIdentity | None, tuple[ModelManifest, Dispatcher]] = {}
        self._current: ModelIdentity | None = None
        self._owners: OrderedDict[str, Dispatcher] = OrderedDict()
        self._asked: dict[ModelIdentity, deque[float]] = {}

    # --- models ------------------------------------------------------------------------------

    def open(self, manifest: ModelManifest) -> None:
        """Take requests for a model."""
        known = self._by_model.get(identity(manifest))
        desk = self._new() if known is None else known[1]
        self._by_model[identity(manifest)] = manifest, desk

    def close(self, manifest: ModelManifest) -> None:
        """Take no more requests for a model; one that has some stays until they end."""
        if not self.num_unfinished(manifest):
            self._by_model.pop(identity(manifest), None)

    def of(self, model: ModelIdentity | None) -> Dispatcher:
        """Return the dispatcher of a model; None: of the one for requests that name none."""
        known = self._by_model.get(self._current if model is None else model)
        return self._plain if known is None else known[1]

    def num_unfinished(self, manifest: ModelManifest) -> int:
        """Return how many requests of a model have not ended."""
        known = self._by_model.get(identity(manifest))
        return 0 if known is None else known[1].num_waiting + known[1].num_running

    # --- what happens ------------------------------------------------------------------------

    def submit(self, generation: Generation, now: float) -> Actions:
        """Queue a request; raises as `Dispatcher.submit`."""
        desk = self.of(generation.model)
        actions = desk.submit(generation, now)
        self._owners[generation.request_id] = desk
        if generation.model is not None:
            times = self._asked.setdefault(generation.model, deque(maxlen=_COUNTED))
            times.append(now)
        while len(self._owners) > _REMEMBERED:
            self._owners.popitem(last=False)
        return actions

    def cancel(self, request_id: str, now: float) -> Actions:
        """Free a request everywhere; nothing if it has ended already."""
        return self._owner(request_id).cancel(request_id, now)

    def handle(self, sender: str, event: Event, now: float) -> Actions:
        """Take in what a node says of requests; those of one event are of one model."""
        if isinstance(event, Tokens):
            ids = [row.request_id for row in event.rows]
        else:
            ids = [event.request_id]
        owner = next((self._owners[each] for each in ids if each in self._owners), self._plain)
        for desk in self._all:
            desk.heard(sender, now)
        return owner.handle(sender, event, now)

    def reported(self, device: str, now: float) -> None:
        """A device has sent telemetry."""
        for desk in self._all:
            desk.reported(device, now)

    def fog_changed(self, view: FogView, now: float) -> Actions:
        """Take in what is known of the fog now."""
        self._current = None if view.model is None else identity(view.model)
        actions = self._plain.fog_changed(view, now)
        for manifest, desk in self._by_model.values():
            _add(actions, desk.fog_changed(view.with_model(manifest), now))
        return actions

    def tick(self, now: float) -> Actions:
        """Run every timer that is due."""
        actions = Actions()
        for desk in self._all:
            _add(actions, desk.tick(now))
        return actions

    # --- what is known -----------------------------------------------------------------------

    def asked(self, now: float) -> dict[str, int]:
        """Return about how many requests for each model came lately, a power of two or 0.

        Empty with one model: then nothing depends on it.
        """
        if len(self._by_model) < 2:
            return {}
        counts = {}
        for manifest, _ in self._by_model.values():
            asked = self._asked.get(identity(manifest), ())
            recent = [at for at in asked if now - at <= _LATELY_SECONDS]
            counts[manifest.revision] = 1 << (len(recent).bit_length() - 1) if recent else 0
        return counts

    def courses(self, now: float) -> dict[str, tuple[Stretch, ...]]:
        """Return what requests did, by their ids: the live ones and the latest that ended."""
        found: dict[str, tuple[Stretch, ...]] = {}
        for desk in self._all:
            found |= desk.courses(now)
        return found

    @property
    def is_idle(self) -> bool:
        """Whether `tick` would do nothing, now and later."""
        return all(desk.is_idle for desk in self._all)

    @property
    def num_waiting(self) -> int:
        """Requests that no replica has taken yet."""
        return sum(desk.num_waiting for desk in self._all)

    @property
    def num_running(self) -> int:
        """Requests that stages hold."""
        return sum(desk.num_running for desk in self._all)

    @property
    def dropped(self) -> Counter[str]:
        """How many events were ignored, by reason."""
        return sum((desk.dropped for desk in self._all), Counter[str]())

    @property
    def _all(self) -> list[Dispatcher]:
        return [self._plain, *(desk for _, desk in self._by_model.values())]

    def _new(self) -> Dispatcher:
        return Dispatcher(self._site, self._gateway, self._settings, Measures(totals=self.totals))

    def _owner(self, request_id: str) -> Dispatcher:
        return self._owners.get(request_id, self._plain)


def _add(actions: Actions, more: Actions) -> None:
    actions.publications += more.publications
    actions.outcomes += more.outcomes
    actions.traces += more.traces

"""What the pages of the dashboard are made of, and who may look at them. Knows no NiceGUI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from gateway.access.caller import ANYBODY, Caller
from gateway.access.door import is_foreign
from gateway.access.keys import Key, KeyRing, Scope
from gateway.access.store import KeyStore
from gateway.dashboard.history import History
from gateway.inference import Inference
from gateway.meter import Meter
from gateway.requests import Engine
from gateway.settings import Settings

ValueT = TypeVar("ValueT")

RECENT_SECONDS: Final = 0.5


class Recent(Generic[ValueT]):
    """What a function returned lately, so that many tabs do not ask for the same many times.

    Args:
        read: The function.
        seconds: After which it is asked again.
        clock: Steady seconds.
    """

    def __init__(
        self,
        read: Callable[[], ValueT],
        seconds: float = RECENT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._seconds = seconds
        self._clock = clock
        self._known: tuple[float, ValueT] | None = None

    def __call__(self) -> ValueT:
        """Return it."""
        now = self._clock()
        if self._known is None or now - self._known[0] >= self._seconds:
            self._known = now, self._read()
        return self._known[1]


class Sources:
    """What the HTTP API answers from, in the same process.

    Args:
        history: What devices said lately, for plots.
        stopping: Set when the process is about to stop.
        meter: Knows the requests.

    Attributes:
        plan: The body of ``GET /fog/plan``, as it was less than `RECENT_SECONDS` ago.
        devices: That of ``GET /fog/devices``, likewise.
    """

    def __init__(
        self,
        engine: Engine,
        inference: Inference,
        keys: KeyStore,
        settings: Settings,
        stopping: asyncio.Event,
        history: History,
        meter: Meter,
    ) -> None:
        self.engine = engine
        self.inference = inference
        self.keys = keys
        self.settings = settings
        self.stopping = stopping
        self.history = history
        self.plan = Recent(engine.fog_plan)
        self.devices = Recent(engine.devices)
        self._meter = meter

    def requests(self, caller: Caller) -> list[dict[str, Any]]:
        """Return the body of ``GET /fog/requests``; of a user, his own."""
        # As they are now: many a request is over before what was kept half a second ago is old.
        return self._meter.requests(self.engine.courses(), caller)

    def caller(self, key_hash: str | None) -> Caller | None:
        """Return who looks now, by the hash of the key that a browser logged in with."""
        return caller_of(self.keys.ring, key_hash, time.time())


def may_look(key: Key) -> bool:
    """Whether the dashboard opens with a key: what a user's key is good for shows it all."""
    return key.scope.allows(Scope.USER)


def caller_of(ring: KeyRing, key_hash: str | None, now: float) -> Caller | None:
    """Return who looks; None: a key is needed, or the one that was given ended.

    Args:
        ring: The keys that count.
        key_hash: `Key.hash` of the key that was given; None: none was.
        now: UTC seconds.
    """
    if ring.is_open:
        return ANYBODY
    for key in ring.keys.values():
        if key.hash == key_hash and key.problem(now) is None and may_look(key):
            return Caller(key.id, key.name, key.scope, key.limits)
    return None


def host_problem(ring: KeyRing, host: str, own: str | None) -> str | None:
    """Return why a browser that came under ``host`` cannot be served, with the remedy.

    Without keys the address is all that tells a page of ours from one of somebody else
    (`gateway.access.door.is_foreign`).
    """
    if ring.is_open and is_foreign(f"http://{host}", host, own):
        return (
            f"A gateway without API keys is not shown under the name {host}, which could be "
            "anybody's. Use its address, set E2LLM_GATEWAY_PUBLIC_URL to this one, or make a key."
        )
    return None

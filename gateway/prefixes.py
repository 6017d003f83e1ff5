"""Which beginnings of prompts the replicas have kept, as far as this gateway knows. Pure.

It follows from the requests that this gateway had computed and from what masters answer. The
masters decide: a wrong belief leads to another replica, never to another answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from broker.plan import Replica
from broker.prefix import Prefix, kv_identity, prefix_of
from gateway.attempt import Request
from gateway.fogview import DeviceView, FogView
from gateway.routing import Load

FIRST_VERSION: Final = "1.1"
"""Of the protocol in which stages keep beginnings; those of an earlier one are not asked to."""
MOST_CHUNKS: Final = 1 << 16
"""Chunks of which this gateway remembers who has them; older ones are forgotten."""


class Prefixes:
    """What replicas have kept.

    Args:
        is_on: False: nothing is kept and nothing used.
    """

    def __init__(self, *, is_on: bool) -> None:
        self._is_on = is_on
        self._known: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def of(self, request: Request, view: FogView) -> Prefix | None:
        """Return how a request's prompt begins by the serving plan; None: it is not to be used."""
        plan = view.serving
        if plan is None or not self._is_on:
            return None
        identity = kv_identity(plan)
        if request.chain is None or request.chain[0] != identity:
            ids = request.generation.prompt_ids
            request.chain = identity, prefix_of(identity, ids, plan.chunk_tokens)
        return request.chain[1]

    def bound(self, request: Request, view: FogView, replicas: Iterable[Replica]) -> Prefix | None:
        """Return what stages of ``replicas`` may keep of a prompt; None: one is too old."""
        devices = {stage.device for replica in replicas for stage in replica.stages}
        if not all(_keeps(view.devices.get(device)) for device in devices):
            return None
        return self.of(request, view)

    def learn(self, replica_id: str, prefix: Prefix, num_tokens: int) -> None:
        """A replica has these leading positions of a prompt, and no more."""
        for end, digest in prefix.ends():
            entry = (replica_id, digest)
            if end > num_tokens:
                self._known.pop(entry, None)
            else:
                self._known[entry] = None
                self._known.move_to_end(entry)
        while len(self._known) > MOST_CHUNKS:
            self._known.popitem(last=False)

    def loads(self, loads: Sequence[Load], request: Request, view: FogView) -> Sequence[Load]:
        """Return the loads with what each replica has probably kept of a request's prompt."""
        prefix = None if request.skips_cache else self.of(request, view)
        if prefix is None or not self._known:
            return loads
        usable = prefix.within(request.known_tokens - 1)
        return [replace(load, held_tokens=self._held(load.replica.id, usable)) for load in loads]

    def _held(self, replica_id: str, prefix: Prefix) -> int:
        ends = prefix.ends()
        return next((end for end, digest in ends if (replica_id, digest) in self._known), 0)


def _keeps(device: DeviceView | None) -> bool:
    """Whether a device speaks a version of the protocol in which it keeps beginnings."""
    return device is not None and device.status is not None and device.status.speaks(FIRST_VERSION)

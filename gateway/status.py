"""What a gateway says of itself on the bus, its last will included."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence, Set

import msgspec

from broker.codec import encode_control
from broker.control import DeviceState, GatewayStatus, ModelManifest
from broker.topics import GATEWAY_STATUS, MODEL
from broker.transport import Publication
from gateway.lengths import LengthsNews


def new_session() -> int:
    """Return a session for a process that starts now: UTC milliseconds."""
    return time.time_ns() // 1_000_000


def status_publication(site: str, gateway: str, status: GatewayStatus) -> Publication:
    """Return the retained publication of a gateway's status; with ``lost``, its will."""
    topic = GATEWAY_STATUS.path(site, gateway=gateway)
    return Publication(topic, encode_control(status), GATEWAY_STATUS.qos, retained=True)


class OwnState:
    """The retained state of one gateway: its status, and the models that it publishes. Pure.

    Args:
        session: The one in the last will.
        lengths: What the status tells of requests, as it is when it is asked for.

    Attributes:
        manifests: Of its models, by topic level, in the order in which they came.
        expected: Topic levels of models that will be published, and stay as they are until then.
        finishing: Models that are not in use, of which requests are unfinished.
    """

    def __init__(
        self,
        site: str,
        gateway: str,
        session: int,
        lengths: LengthsNews,
        addresses: Sequence[str] = (),
        software: str = "",
    ) -> None:
        self._site, self._gateway, self._session = site, gateway, session
        self._lengths = lengths
        self._addresses, self._software = list(addresses), software
        self.manifests: dict[str, ModelManifest] = {}
        self.expected: frozenset[str] = frozenset()
        self.finishing: list[str] = []

    def serve(self, manifest: ModelManifest) -> ModelManifest:
        """Take over a model; return its manifest with this gateway's name."""
        own = msgspec.structs.replace(manifest, gateway=self._gateway)
        self.manifests[topic_level(own.name)] = own
        return own

    def withdraw(self, manifest: ModelManifest) -> None:
        """Give a model up."""
        self.manifests.pop(topic_level(manifest.name), None)

    @property
    def topics(self) -> set[str]:
        """The topics that retain it."""
        topics = {GATEWAY_STATUS.path(self._site, gateway=self._gateway)}
        return topics | {MODEL.path(self._site, model=model) for model in self.manifests}

    def status(self, state: DeviceState = DeviceState.READY) -> Publication:
        """Return the status as it is now."""
        status = GatewayStatus(
            state=state,
            session=self._session,
            addresses=self._addresses,
            software=self._software,
            lengths=self._lengths.told,
            hop_overhead_seconds=self._lengths.hop_overhead_seconds,
            finishing=self.finishing,
            asked=self._lengths.asked,
        )
        return status_publication(self._site, self._gateway, status)

    def has_news(self, num_unfinished: Callable[[ModelManifest], int]) -> bool:
        """Look which models are finishing; return whether that is to be told."""
        before = self.finishing
        self.finishing = [
            manifest.revision
            for manifest in self.manifests.values()
            if not manifest.in_use and num_unfinished(manifest)
        ]
        return self.finishing != before

    def meet(self, status: GatewayStatus) -> bool:
        """Take in a retained status of ours; return whether ours must be said again.

        It must over one of an earlier run, and over its late will.
        """
        if status.session == self._session and status.state is DeviceState.READY:
            return False
        if status.session > self._session:
            # The clock went back since the earlier run.
            self._session = status.session + 1
        return True

    def gone(self, known: Iterable[str]) -> set[str]:
        """Return those of ``known`` that are to be taken back; none before there is a model."""
        return set(known) - self.manifests.keys() - self.expected if self.manifests else set()

    def models(self, known: Iterable[str], levels: Set[str] | None = None) -> list[Publication]:
        """Return the manifests, after empty ones for other models that this gateway published.

        Args:
            known: Models, as topic levels, of which the broker has a manifest of ours.
            levels: Those to return; None: all.
        """
        # Those that are not in use go first: nobody shall see two in use where one is meant.
        own = sorted(self.manifests.items(), key=lambda item: item[1].in_use)
        gone = dict.fromkeys(sorted(self.gone(known)), b"")
        wanted = [(level, each) for level, each in own if levels is None or level in levels]
        payloads = {**gone, **{level: encode_control(manifest) for level, manifest in wanted}}
        return [
            Publication(MODEL.path(self._site, model=model), payload, MODEL.qos, retained=True)
            for model, payload in payloads.items()
        ]


def topic_level(name: str) -> str:
    """Return a model's name as one topic level."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[:100] or "model"

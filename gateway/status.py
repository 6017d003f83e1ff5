"""What a gateway says of itself on the bus, its last will included."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence

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
    """The retained state of one gateway: its status, and the model that it serves. Pure.

    Args:
        session: The one in the last will.
        lengths: What the status tells of requests, as it is when it is asked for.

    Attributes:
        manifest: Of the model; None before there is one.
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
        self.manifest: ModelManifest | None = None

    def serve(self, manifest: ModelManifest) -> ModelManifest:
        """Take over a model; return its manifest with this gateway's name."""
        self.manifest = msgspec.structs.replace(manifest, gateway=self._gateway)
        return self.manifest

    @property
    def model(self) -> str | None:
        """The model's name as one topic level; None without a model."""
        if self.manifest is None:
            return None
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.manifest.name).strip("-")[:100] or "model"

    @property
    def topics(self) -> set[str]:
        """The topics that retain it."""
        topics = {GATEWAY_STATUS.path(self._site, gateway=self._gateway)}
        if self.model is not None:
            topics.add(MODEL.path(self._site, model=self.model))
        return topics

    def status(self, state: DeviceState = DeviceState.READY) -> Publication:
        """Return the status as it is now."""
        status = GatewayStatus(
            state=state,
            session=self._session,
            addresses=self._addresses,
            software=self._software,
            lengths=self._lengths.told,
            hop_overhead_seconds=self._lengths.hop_overhead_seconds,
        )
        return status_publication(self._site, self._gateway, status)

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

    def models(self, known: Iterable[str]) -> list[Publication]:
        """Return the manifest, after empty ones for other models that this gateway served.

        Args:
            known: Models, as topic levels, of which the broker has a manifest of ours.
        """
        if self.manifest is None or self.model is None:
            return []
        payloads = {model: b"" for model in sorted(known) if model != self.model}
        payloads[self.model] = encode_control(self.manifest)
        return [
            Publication(MODEL.path(self._site, model=model), payload, MODEL.qos, retained=True)
            for model, payload in payloads.items()
        ]

"""What a node says of itself: status, profile, what is loaded, telemetry.

Decides when; `nodes.profiler`, `nodes.holdings` and the others know what.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from msgspec.structs import replace

from broker.codec import encode_control
from broker.control import Control, DeviceState, Link, TensorOffer
from broker.metrics import Sample
from broker.plan import Loaded, LoadState
from broker.telemetry import Telemetry
from broker.topics import (
    DEVICE_LOADED,
    DEVICE_PROFILE,
    DEVICE_TELEMETRY,
    DEVICE_TENSORS,
    Topic,
)
from broker.transport import Publication
from nodes.complaints import Complaints
from nodes.connections import Connections
from nodes.device import DeviceCore
from nodes.emulation import Pacer
from nodes.exchange import Exchange
from nodes.hardware import Sensors
from nodes.holdings import Holdings
from nodes.metrics import samples
from nodes.presence import Presence
from nodes.profiler import Profiler
from nodes.speed import SpeedGauge
from nodes.steps import RunLog

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS: Final = 0.25
# Two processes under one id would otherwise answer each other as fast as the broker can.
_STATUS_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Vitals:
    """What telemetry is made of, beside sensors and stages.

    Attributes:
        link: As it is now; None before it was measured.
    """

    pacer: Pacer
    runs: RunLog
    gauge: SpeedGauge
    link: Link | None
    complaints: Complaints


class Reports:
    """The retained state and the telemetry of one device."""

    def __init__(
        self,
        connections: Connections,
        presence: Presence,
        profiler: Profiler,
        holdings: Holdings,
        core: DeviceCore,
        *,
        telemetry_seconds: float,
        exchange: Exchange,
    ) -> None:
        self._connections = connections
        self._presence = presence
        self._profiler = profiler
        self._holdings = holdings
        self._core = core
        self._telemetry_seconds = telemetry_seconds
        self._sensors = Sensors()
        self._status_due = False
        self._status_at = self._loaded_at = self._telemetry_at = 0.0
        self._loaded: Loaded | None = None
        self._exchange = exchange
        self._offer: TensorOffer | None = None
        self._telemetry = Telemetry()

    def announce(self, now: float) -> None:
        """Publish all retained state; the broker may have lost it, or hold a late will."""
        self._presence.is_announced = True
        logger.info("ready, session %d", self._presence.session)
        self._publish_status(now)
        self.publish_profile()
        self._publish_loaded(self._holdings.loaded, now)
        self._publish_offer()

    def contradict(self) -> None:
        """Somebody said something else under our id, or cleared it: announce again, soon."""
        self._status_due = True

    def publish_profile(self) -> None:
        """Publish what was measured, once all is."""
        profile = self._profiler.profile(self._presence.session)
        # What the process takes from now on is the model.
        self._sensors.reset_memory()
        if profile is not None and self._presence.is_announced:
            logger.info(
                "measured: %s per block and token, %.1f MiB offered, link of %.3g ms",
                ", ".join(
                    f"{1e3 * times.decode[0].seconds:.3g} ms ({kind})"
                    for kind, times in profile.blocks.items()
                ),
                profile.memory_bytes / (1 << 20),
                1e3 * profile.link.latency_seconds,
            )
            self._publish(DEVICE_PROFILE, profile)

    def tick(self, now: float, vitals: Vitals) -> None:
        """Publish what is due."""
        if self._status_due and now - self._status_at >= _STATUS_SECONDS:
            self.announce(now)
        loaded = self._holdings.loaded
        if loaded != self._loaded and self._is_due(loaded, now):
            self._publish_loaded(loaded, now)
        if self._exchange.offer(self._presence.session) != self._offer:
            self._publish_offer()
        if now - self._telemetry_at >= self._telemetry_seconds:
            self._telemetry_at = now
            self._publish_telemetry(vitals)

    def _is_due(self, loaded: Loaded, now: float) -> bool:
        is_progress = (
            self._loaded is not None
            and self._loaded.state is loaded.state is LoadState.LOADING
            and self._loaded.version == loaded.version
        )
        return not is_progress or now - self._loaded_at >= _PROGRESS_SECONDS

    def _publish_status(self, now: float) -> None:
        self._status_due, self._status_at = False, now
        self._connections.publish(self._connections.status(DeviceState.READY))

    def _publish_loaded(self, loaded: Loaded, now: float) -> None:
        self._loaded, self._loaded_at = loaded, now
        if loaded.state is LoadState.LOADED and loaded.version:
            logger.info(
                "assignment %d: stages %s, %.1f MiB",
                loaded.version,
                ", ".join(loaded.stages) or "none",
                loaded.loaded_bytes / (1 << 20),
            )
        self._publish(DEVICE_LOADED, loaded)

    def _publish_offer(self) -> None:
        self._offer = offer = self._exchange.offer(self._presence.session)
        if offer is not None:
            self._publish(DEVICE_TENSORS, offer)
            return
        # An earlier run may have left an offer behind that nobody stands by.
        path = DEVICE_TENSORS.path(self._connections.site, device=self._core.device)
        self._connections.publish(Publication(path, b"", DEVICE_TENSORS.qos, retained=True))

    def samples(self) -> Iterator[Sample]:
        """What is told as metrics; only values that do not change, since another thread asks."""
        return samples(self._telemetry, self._holdings.loaded, self._connections.traffic)

    def _publish_telemetry(self, vitals: Vitals) -> None:
        runs, link = vitals.runs, vitals.link
        stages = self._core.stages.values()
        speculated = self._core.speculated
        # An emulated device waits for the cores of a host that is not its own.
        is_emulated = vitals.pacer.is_emulated
        telemetry = replace(
            self._sensors.read(),
            speed_ratio=vitals.gauge.ratio,
            core_wait_ratio=None if is_emulated else runs.core_wait_ratio(),
            stage_seconds=runs.stage_seconds(),
            stage_rows=runs.stage_rows(),
            prefill_token_seconds=runs.prefill_token_seconds(),
            link_latency_seconds=None if link is None else link.latency_seconds,
            link_bytes_per_second=None if link is None else link.bytes_per_second,
            queue_length=self._core.queue_length,
            tokens_per_second=runs.tokens_per_second(),
            kv_used_tokens=self._core.kv_used_tokens,
            kv_kept_tokens=self._core.kv_kept_tokens,
            kv_chunks_sent=self._core.kv_chunks_sent,
            kv_chunks_received=self._core.kv_chunks_received,
            proposed_tokens=speculated.proposed,
            accepted_tokens=speculated.accepted,
            late_steps=vitals.pacer.late_steps,
            dropped_messages=vitals.complaints.num_dropped
            + self._core.dropped.total()
            + sum(stage.dropped.total() for stage in stages),
        )
        self._telemetry = telemetry
        self._publish(DEVICE_TELEMETRY, telemetry)

    def _publish(self, topic: Topic[Any], message: Control) -> None:
        path = topic.path(self._connections.site, device=self._core.device)
        self._connections.publish(
            Publication(path, encode_control(message), topic.qos, retained=topic.retained)
        )

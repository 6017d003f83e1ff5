"""What the device says of itself for one model: measured times, link, memory.

The newest manifest is the one that counts. Measuring runs in the background.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

from broker.architecture import parse_config
from broker.control import DeviceProfile, Link, ModelManifest, OwnerRules
from nodes.calibration import Calibration, CostTable
from nodes.calibrator import Calibrated, CalibrationFailed
from nodes.compute import JobCost
from nodes.hardware import free_memory_bytes, offered_bytes, total_memory_bytes
from nodes.settings import MemoryOffer

logger = logging.getLogger(__name__)

# Less would say that other programs kept the device from measuring anything.
_LEAST_SHARE: Final = 0.1


class Events(Protocol):
    """A queue of results."""

    def empty(self) -> bool:
        """Whether there is none."""

    def get(self) -> Calibrated | CalibrationFailed:
        """Return the next."""


class Calibrates(Protocol):
    """`nodes.calibrator.Calibrator`, or times that a test gives."""

    hardware: str

    @property
    def events(self) -> Events:
        """Where results are put."""

    def start(self, manifest: ModelManifest) -> None:
        """Measure in the background."""


class Profiler:
    """Builds the device's profile.

    Args:
        calibrator: Measures.
        offer: Memory offered to the model; None: the default share of what is free.
        slowdown: Of an emulated device.
        threads: Threads that torch uses.
        watts: Power while idle and while computing, where the owner says.
        owner: What the owner allows; of a share of the device, the memory is kept to here.

    Attributes:
        link: The measured link; None until `take_link`.
        error: Why the device cannot serve the newest model; None when it can.
    """

    def __init__(
        self,
        calibrator: Calibrates,
        offer: MemoryOffer | None = None,
        *,
        slowdown: float = 1.0,
        threads: int = 1,
        watts: tuple[float | None, float | None] = (None, None),
        owner: OwnerRules | None = None,
    ) -> None:
        self._calibrator = calibrator
        self._offer = offer
        self._slowdown = slowdown
        self._threads = threads
        self._watts = watts
        self._owner = owner or OwnerRules()
        self.link: Link | None = None
        self.error: str | None = None
        self._manifest: ModelManifest | None = None
        self._started: tuple[str, str, str] | None = None
        self._calibration: Calibration | None = None
        self._arithmetic = ""
        self._memory_bytes = 0
        self._tables: dict[str, CostTable] = {}

    def take_manifest(self, manifest: ModelManifest) -> bool:
        """Take in the newest model; True when the device has to measure itself for it."""
        is_same = self._manifest is not None and _identity(self._manifest) == _identity(manifest)
        self._manifest = manifest
        if is_same:
            return False
        self._calibration = None
        self._start()
        return True

    def take_link(self, link: Link) -> None:
        """The link was measured; now nothing disturbs the measuring of the device."""
        self.link = link
        self._start()

    def _start(self) -> None:
        manifest = self._manifest
        if manifest is None or self.link is None or self._started == _identity(manifest):
            return
        self._started = _identity(manifest)
        self._calibrator.start(manifest)

    def poll(self) -> bool:
        """Take in results; True when there was one for the newest model."""
        is_new = False
        while not self._calibrator.events.empty():
            event = self._calibrator.events.get()
            if self._manifest is None or _identity(event.manifest) != _identity(self._manifest):
                continue
            is_new = True
            if isinstance(event, CalibrationFailed):
                self.error, self._calibration = event.error, None
                self._started = None
                logger.error("%s", event.error)
                continue
            self.error, self._calibration = None, event.calibration
            self._arithmetic = event.arithmetic
            self._tables[event.manifest.revision] = CostTable(event.calibration)
            config = parse_config(event.manifest.config)
            weights, kv_format = event.manifest.weights, event.manifest.kv_format
            most = int(self._owner.share * total_memory_bytes())
            offered = offered_bytes(self._offer, config, weights, kv_format, free_memory_bytes())
            self._memory_bytes = min(offered, most) if self._owner.share < 1 else offered
        return is_new

    def calibrated_seconds(self, revision: str | None, cost: JobCost) -> float | None:
        """Return what a computation takes on this machine without slowdown, if measured."""
        table = self._tables.get(revision or "")
        return None if table is None else table.seconds(cost)

    @property
    def core_share(self) -> float:
        """Share of a core that computing took when the device measured itself."""
        known = self._calibration
        return 1.0 if known is None else max(known.cpu_seconds_per_second, _LEAST_SHARE)

    def profile(self, session: int) -> DeviceProfile | None:
        """Return the profile for the newest model; None until all is measured."""
        if self._manifest is None or self._calibration is None or self.link is None:
            return None
        slowed = self._calibration.slowed(self._slowdown)
        return DeviceProfile(
            session=session,
            model_revision=self._manifest.revision,
            weights=self._manifest.weights,
            threads=self._threads,
            memory_bytes=self._memory_bytes,
            blocks=slowed.blocks,
            embedding=slowed.embedding,
            head=slowed.head,
            link=self.link,
            chunk_tokens=slowed.chunk_tokens,
            slowdown=self._slowdown,
            cpu_seconds_per_second=slowed.cpu_seconds_per_second,
            hardware=self._calibrator.hardware,
            idle_watts=self._watts[0],
            busy_watts=self._watts[1],
            owner=self._owner,
            arithmetic=self._arithmetic,
        )


def _identity(manifest: ModelManifest) -> tuple[str, str, str]:
    return manifest.revision, manifest.weights, manifest.kv_format

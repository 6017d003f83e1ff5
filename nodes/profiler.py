"""What the device says of itself: its link, and for each model that is published times and memory.

Measuring runs in the background, one model after the other.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

from msgspec.structs import asdict

from broker.architecture import parse_config
from broker.control import DeviceProfile, Link, ModelManifest, ModelTimes, OwnerRules
from nodes.calibration import CostTable
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
        error: Why the device cannot serve the model that it measured for last; None when it can.
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
        # By the topic level under which they are published; the newest is the last.
        self._manifests: dict[str, ModelManifest] = {}
        self._started: set[_Shape] = set()
        self._times: dict[_Shape, ModelTimes] = {}
        self._tables: dict[tuple[str, str], CostTable] = {}
        # Before anything was loaded: what is free later is what models have left.
        self._free_bytes: int | None = None

    def take_manifest(self, manifest: ModelManifest, model: str = "") -> bool:
        """Take in what is published as ``model``; True when the device has to measure for it."""
        known = self._manifests.get(model)
        is_same = known is not None and _shape(known) == _shape(manifest)
        if not is_same:
            self.forget(model)
        self._manifests[model] = manifest
        self._start()
        return not is_same and _shape(manifest) not in self._times

    def forget(self, model: str) -> bool:
        """A model is not published any more; True when the profile loses its times."""
        manifest = self._manifests.pop(model, None)
        if manifest is None or _shape(manifest) in self._published:
            return False
        # Published again, it is measured again, or read from disk.
        self._started.discard(_shape(manifest))
        return self._times.pop(_shape(manifest), None) is not None

    def take_link(self, link: Link) -> None:
        """The link was measured; now nothing disturbs the measuring of the device."""
        self.link = link
        self._start()

    def _start(self) -> None:
        if self.link is None:
            return
        for manifest in self._manifests.values():
            if _shape(manifest) not in self._started:
                self._started.add(_shape(manifest))
                self._calibrator.start(manifest)

    def poll(self) -> bool:
        """Take in results; True when there was one for a model that is published."""
        is_new = False
        while not self._calibrator.events.empty():
            event = self._calibrator.events.get()
            shape = _shape(event.manifest)
            if shape not in self._published:
                continue
            is_new = True
            if isinstance(event, CalibrationFailed):
                self.error = event.error
                self._started.discard(shape)
                logger.error("%s", event.error)
                continue
            self.error = None
            calibration = event.calibration
            self._tables[shape[:2]] = CostTable(calibration)
            self._times[shape] = self._model_times(event)
        return is_new

    def _model_times(self, event: Calibrated) -> ModelTimes:
        manifest, slowed = event.manifest, event.calibration.slowed(self._slowdown)
        if self._free_bytes is None:
            self._free_bytes = free_memory_bytes()
        config = parse_config(manifest.config)
        weights, kv_format = manifest.weights, manifest.kv_format
        memory_bytes = offered_bytes(self._offer, config, weights, kv_format, self._free_bytes)
        if self._owner.share < 1:
            memory_bytes = min(memory_bytes, int(self._owner.share * total_memory_bytes()))
        return ModelTimes(
            model_revision=manifest.revision,
            weights=weights,
            memory_bytes=memory_bytes,
            blocks=slowed.blocks,
            embedding=slowed.embedding,
            head=slowed.head,
            chunk_tokens=slowed.chunk_tokens,
            cpu_seconds_per_second=slowed.cpu_seconds_per_second,
            arithmetic=event.arithmetic,
        )

    def calibrated_seconds(self, key: tuple[str, str] | None, cost: JobCost) -> float | None:
        """Return what a computation takes on this machine without slowdown, if measured.

        ``key`` is the model's revision and the format of its weights.
        """
        table = None if key is None else self._tables.get(key)
        return None if table is None else table.seconds(cost)

    @property
    def core_share(self) -> float:
        """Share of a core that computing took when the device measured itself."""
        known = self._measured
        return 1.0 if not known else max(known[0].cpu_seconds_per_second, _LEAST_SHARE)

    @property
    def _published(self) -> set[_Shape]:
        return {_shape(manifest) for manifest in self._manifests.values()}

    @property
    def _measured(self) -> list[ModelTimes]:
        """What was measured of the models that are published, the newest first, each once."""
        newest_first = reversed(list(self._manifests.values()))
        shapes = dict.fromkeys(_shape(manifest) for manifest in newest_first)
        return [self._times[shape] for shape in shapes if shape in self._times]

    def profile(self, session: int) -> DeviceProfile | None:
        """Return the profile; None until the link and a model are measured."""
        measured = self._measured
        if not measured or self.link is None:
            return None
        newest, *others = measured
        return DeviceProfile(
            **asdict(newest),
            session=session,
            threads=self._threads,
            link=self.link,
            slowdown=self._slowdown,
            hardware=self._calibrator.hardware,
            idle_watts=self._watts[0],
            busy_watts=self._watts[1],
            owner=self._owner,
            others=others,
        )


_Shape = tuple[str, str, str]
"""What times are for: revision, weight format, KV format."""


def _shape(manifest: ModelManifest) -> _Shape:
    return manifest.revision, manifest.weights, manifest.kv_format

"""Measures this device for a model in the background, or reads what was measured before."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from broker.architecture import UnsupportedModelError, is_integer, parse_config
from broker.control import ModelManifest
from nodes.calibration import Calibration
from nodes.hardware import (
    cpu_quota_cores,
    describe_hardware,
    give_memory_back,
    software_version,
)
from nodes.kernels import choose_int8_kernel, describe_arithmetic
from nodes.measure import measure
from nodes.profiles import MeasurementCache, calibration_key


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The times for one revision and weight format, and what decides its results there."""

    manifest: ModelManifest
    calibration: Calibration
    arithmetic: str = ""


@dataclass(frozen=True, slots=True)
class CalibrationFailed:
    """The device cannot serve the model; ``error`` says why."""

    manifest: ModelManifest
    error: str


class Calibrator:
    """Measures one model after the other in threads of its own; results are put on ``events``."""

    def __init__(self, cache_folder: Path, threads: int) -> None:
        self.events: queue.SimpleQueue[Calibrated | CalibrationFailed] = queue.SimpleQueue()
        quota = cpu_quota_cores()
        # Part of the cache's key: with another limit the same processor is another device.
        limit = f", at most {quota:g} cores" if quota is not None else ""
        self.hardware = f"{describe_hardware()}{limit}, torch {torch.__version__}"
        self._folder = cache_folder
        self._cache = MeasurementCache(cache_folder, Calibration)
        self._threads = threads

    def start(self, manifest: ModelManifest) -> None:
        """Measure for the model of ``manifest``, in the background."""
        run = threading.Thread(target=self._run, args=(manifest,), name="calibrator", daemon=True)
        run.start()

    def _run(self, manifest: ModelManifest) -> None:
        torch.set_num_threads(self._threads)
        try:
            calibration = self.calibrate(manifest)
            arithmetic = describe_arithmetic(manifest.weights)
            self.events.put(Calibrated(manifest, calibration, arithmetic))
        except UnsupportedModelError as error:
            self.events.put(CalibrationFailed(manifest, str(error)))
        except Exception as error:  # out of memory, say: the planner must hear of it
            text = f"cannot measure this device: {type(error).__name__}: {error}"
            self.events.put(CalibrationFailed(manifest, text))
        give_memory_back()

    def calibrate(self, manifest: ModelManifest) -> Calibration:
        """Return the times for a model, measured now or before.

        Raises:
            UnsupportedModelError: The model or its formats cannot be served.
        """
        config = parse_config(manifest.config)
        weights, kv_format = manifest.weights, manifest.kv_format
        key = calibration_key(
            config, weights, kv_format, self.hardware, self._threads, software_version()
        )
        # Before, since both take the same lock.
        kernel = choose_int8_kernel(self._folder, self._threads) if is_integer(weights) else None
        return self._cache.get_or_measure(
            key, lambda: measure(config, weights, kv_format, threads=self._threads, kernel=kernel)
        )

"""Measurements on disk: nodes of one host measure one after the other, and only once.

Six emulated devices share one measurement, which is made without their slowdowns.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Generic, TypeVar

from broker.architecture import ModelConfig
from broker.codec import DecodeError, decode_control, encode_control
from broker.control import Control

logger = logging.getLogger(__name__)

MeasurementT = TypeVar("MeasurementT", bound=Control)


def calibration_key(
    config: ModelConfig, weights: str, kv_format: str, hardware: str, threads: int, software: str
) -> str:
    """Return a hash of everything that the times depend on."""
    shape = asdict(config)
    # Neither changes how long anything takes.
    for name in ("eos_token_ids", "dtype"):
        del shape[name]
    return short_hash(sorted(shape.items()), weights, kv_format, hardware, threads, software)


def short_hash(*parts: object) -> str:
    """Return a hash of what a measurement depends on, to be used as its key."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


class MeasurementCache(Generic[MeasurementT]):
    """A folder of measurements of one type, under one lock for all processes of the host."""

    def __init__(self, folder: Path, measurement: type[MeasurementT]) -> None:
        self._folder = folder / "calibrations"
        self._type = measurement

    def get_or_measure(self, key: str, measure: Callable[[], MeasurementT]) -> MeasurementT:
        """Return the cached measurement, or wait for the lock and measure.

        A folder that cannot be used costs a measurement and a warning, nothing else.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked())
            except OSError as error:
                logger.warning("no measurements are kept in %s: %s", self._folder, error)
                return measure()
            path = self._folder / f"{key}.json"
            cached = _read(path, self._type)
            if cached is not None:
                return cached
            measurement = measure()
            try:
                _write(path, measurement)
            except OSError as error:
                logger.warning("the measurement is not kept in %s: %s", path, error)
            return measurement

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; the kernel lets go of it however the process ends."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _read(path: Path, measurement: type[MeasurementT]) -> MeasurementT | None:
    try:
        return decode_control(path.read_bytes(), measurement)
    except FileNotFoundError:
        return None
    except (OSError, DecodeError) as error:
        logger.warning("the measurement in %s is not readable and is made again: %s", path, error)
        return None


def _write(path: Path, measurement: Control) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(encode_control(measurement))
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise

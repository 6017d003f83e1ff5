"""What this device is and how it is doing: processor, memory, telemetry. No torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil

from broker.architecture import (
    ModelConfig,
    context_limit,
    kv_bytes_per_token,
    stage_bytes,
)
from broker.telemetry import Telemetry
from nodes.settings import MemoryOffer

DEFAULT_SHARE_OF_FREE: Final = 0.7

PLANNED_CONTEXT: Final = 2048
"""KV positions that a share of a model counts, or the model's context if that is less.

The planner's default for the longest request: a replica must be able to hold one, so a share
below 100 % can never hold a model alone."""

_NO_LIMIT: Final = 1 << 60
_CGROUP: Final = Path("/sys/fs/cgroup")


def software_version() -> str:
    """Return the version of E2LLM, or ``unknown`` outside an installation."""
    try:
        return version("e2llm")
    except PackageNotFoundError:
        return "unknown"


def describe_hardware(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return processor and number of cores, the same after every start."""
    name = platform.processor() or platform.machine()
    try:
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                name = value.strip()
                break
    except OSError:
        pass  # Not Linux: the platform's own word must do.
    return f"{name}, {platform.machine()}, {os.cpu_count() or 1} cores"


def free_memory_bytes(cgroup: Path = _CGROUP) -> int:
    """Return the memory that this process can still get, a container's limit included."""
    free = int(psutil.virtual_memory().available)
    # Version 2 of control groups, then version 1.
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, now = _read_number(cgroup / limit), _read_number(cgroup / used)
        if most is not None and now is not None and most < _NO_LIMIT:
            return max(min(free, most - now), 0)
    return free


def total_memory_bytes(cgroup: Path = _CGROUP) -> int:
    """Return the memory of the device, or of the container when that has a limit."""
    total = int(psutil.virtual_memory().total)
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        most = _read_number(cgroup / limit)
        if most is not None and most < _NO_LIMIT:
            return min(total, most)
    return total


def share_slowdown(share: float, threads: int, cores: float) -> float:
    """Return how many times slower a device computes so that it uses its share of all cores.

    Computing with some of the cores already leaves the others alone; what is left of the
    share is kept by waiting after each computation.
    """
    return max(threads / (share * cores), 1.0)


def give_memory_back() -> None:
    """Return freed memory to the system now, where the C library has a call for that (glibc).

    What packing weights or measuring used would otherwise stay with the process.
    """
    # Another C library gives memory back by itself, or not at all.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None  # Absent, or "max": no limit.


def offered_bytes(
    offer: MemoryOffer | None, config: ModelConfig, weights: str, kv_format: str, free_bytes: int
) -> int:
    """Return the memory offered to a model, in bytes.

    A share counts the weights, embedding and head included, and the KV of one request of
    the planned context in all layers.
    """
    if offer is None:
        return int(DEFAULT_SHARE_OF_FREE * free_bytes)
    if offer.num_bytes is not None:
        return offer.num_bytes
    assert offer.share is not None, "an offer has a share or bytes"
    layers = config.num_layers
    model = stage_bytes(config, weights, range(layers), embedding=True, head=True)
    context = min(context_limit(config), PLANNED_CONTEXT)
    return int(offer.share * (model + context * kv_bytes_per_token(config, kv_format, layers)))


class Sensors:
    """Load, memory, temperature and battery, as far as they can be read here."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._base_bytes: int | None = None

    def reset_memory(self) -> None:
        """What the process takes now, the first time, is not the model."""
        if self._base_bytes is None:
            self._base_bytes = self._resident_bytes()

    def read(self) -> Telemetry:
        """Return the readings of now."""
        base = self._base_bytes
        battery, is_charging = _battery()
        return Telemetry(
            # Since the last call; the first one says 0.
            cpu_load_ratio=psutil.cpu_percent(None) / 100,
            memory_available_bytes=free_memory_bytes(),
            memory_used_bytes=None if base is None else max(self._resident_bytes() - base, 0),
            temperature_celsius=_temperature(),
            battery_ratio=battery,
            is_charging=is_charging,
        )

    def _resident_bytes(self) -> int:
        return int(self._process.memory_info().rss)


def _temperature() -> float | None:
    """Return the hottest plausible sensor; None where there is none."""
    read = getattr(psutil, "sensors_temperatures", None)
    if read is None:
        return None
    try:
        found = [entry.current for entries in read().values() for entry in entries]
    except (OSError, RuntimeError):
        return None
    plausible = [value for value in found if value is not None and 0 < value < 150]
    return max(plausible, default=None)


def _battery() -> tuple[float | None, bool | None]:
    """Return charge, and whether there is mains power; None where there is no battery."""
    try:
        battery = psutil.sensors_battery()
    except (OSError, RuntimeError, AttributeError):
        return None, None
    if battery is None:
        return None, None
    charging = battery.power_plugged
    ratio = min(max(battery.percent / 100, 0.0), 1.0)
    return ratio, None if charging is None else bool(charging)


def cpu_quota_cores(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the cores that a container may use on average; None without a limit.

    Reads ``cpu.max`` (cgroup v2) or ``cpu/cpu.cfs_quota_us`` (v1): quota and period in
    microseconds.
    """
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        cores = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):
        return None  # "max": no limit
    return cores if cores > 0 else None

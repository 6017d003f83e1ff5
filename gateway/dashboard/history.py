"""What devices said over the last hour, for plots: bounded, in memory only. Pure but for `record`.

It begins with the gateway, whether or not anybody looks: who opens the dashboard wants to see
what went before.
"""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

SAMPLE_SECONDS: Final = 5.0
NUM_SAMPLES: Final = 720
"""An hour; 200 devices take 2.3 MB."""


class Quantity(NamedTuple):
    """What is plotted of a device: a field of its telemetry, in the unit of the plot."""

    field: str
    title: str
    unit: str
    factor: float


QUANTITIES: Final = (
    Quantity("cpu_load_ratio", "Load", "%", 100.0),
    Quantity("memory_used_bytes", "Memory used", "MiB", 2.0**-20),
    Quantity("temperature_celsius", "Temperature", "°C", 1.0),
    Quantity("tokens_per_second", "Tokens", "tokens/s", 1.0),
)


class Point(NamedTuple):
    """A value and when it was seen, on the gateway's clock."""

    at: float
    value: float


class History:
    """The latest samples of all devices, taken together; the oldest go first.

    Args:
        num_samples: How many are kept.
    """

    def __init__(self, num_samples: int = NUM_SAMPLES) -> None:
        self._size = num_samples
        self._num_taken = 0
        self._times = array("d", bytes(8 * num_samples))
        self._values: dict[str, dict[str, array[float]]] = {}

    def take(self, now: float, devices: Iterable[Mapping[str, Any]]) -> None:
        """Take a sample of what ``GET /fog/devices`` says; devices not in it are forgotten."""
        slot = self._num_taken % self._size
        self._times[slot] = now
        self._num_taken += 1
        before, self._values = self._values, {}
        for device in devices:
            rows = before.get(device["id"]) or {each.field: self._empty() for each in QUANTITIES}
            # What a device that is away said last would look like a measurement of now.
            said = device["telemetry"] if device["state"] == "ready" else None
            for field, values in rows.items():
                value = (said or {}).get(field)
                values[slot] = math.nan if value is None else value
            self._values[device["id"]] = rows

    def points(self, device: str, field: str) -> list[Point]:
        """Return what a device said of one field, oldest first, gaps left out."""
        values = self._values.get(device, {}).get(field)
        if values is None:
            return []
        first = max(self._num_taken - self._size, 0)
        slots = (number % self._size for number in range(first, self._num_taken))
        return [
            Point(self._times[slot], values[slot]) for slot in slots if not math.isnan(values[slot])
        ]

    def _empty(self) -> array[float]:
        return array("f", [math.nan]) * self._size


async def record(
    history: History,
    devices: Callable[[], Iterable[Mapping[str, Any]]],
    clock: Callable[[], float],
    seconds: float = SAMPLE_SECONDS,
) -> None:
    """Take a sample every so many seconds, until cancelled."""
    while True:
        history.take(clock(), devices())
        await asyncio.sleep(seconds)

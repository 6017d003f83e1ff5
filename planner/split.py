"""The problem of splitting layers over devices, and what its answers look like. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

EPSILON: Final = 1e-9
"""Values that differ by less, relative to their size, differ by rounding only."""


@dataclass(frozen=True, slots=True)
class SplitProblem:
    """A group of N devices and a model of L layers.

    Attributes:
        layer_seconds: [N][L], each layer on each device.
        first_seconds: [N], the embedding.
        last_seconds: [N], the head.
        layer_bytes: [L], weights plus KV cache.
        first_bytes: Of the embedding.
        last_bytes: Of the head.
        shared_bytes: What a stage with both ends holds only once.
        memory_bytes: [N], memory that the device offers.
    """

    layer_seconds: Sequence[Sequence[float]]
    first_seconds: Sequence[float]
    last_seconds: Sequence[float]
    layer_bytes: Sequence[int]
    first_bytes: int
    last_bytes: int
    shared_bytes: int
    memory_bytes: Sequence[int]

    def room_bytes(self, device: int, is_first: bool, is_last: bool) -> int:
        """Return what is left for layers beside the ends that the device holds."""
        room = self.memory_bytes[device]
        room -= self.first_bytes if is_first else 0
        room -= self.last_bytes if is_last else 0
        return room + (self.shared_bytes if is_first and is_last else 0)

    def ends_seconds(self, device: int, is_first: bool, is_last: bool) -> float:
        """Return the time of the ends that the device holds."""
        ends = self.first_seconds[device] if is_first else 0.0
        return ends + (self.last_seconds[device] if is_last else 0.0)


@dataclass(frozen=True, slots=True)
class Pace:
    """What a split is judged by: ``max(weight * total + extra, laps * slowest)``.

    With weight 0 it is the paper's bottleneck; with weight 1, ``laps`` groups in flight and
    the hops as ``extra``, it is the time between two tokens of a request.
    """

    laps: int = 1
    weight: float = 0.0
    extra_seconds: float = 0.0

    def seconds(self, slowest: float, total: float) -> float:
        """Return the value of a split."""
        return max(self.weight * total + self.extra_seconds, self.laps * slowest)


class Split(NamedTuple):
    """One way to split; compares by value, then by total, so that `min` is the best.

    Attributes:
        seconds: By the pace that was asked for.
        total: Sum of the stages.
        slowest: The slowest stage.
        order: [N], device indexes in stage order.
        counts: [N], layers of each stage.
    """

    seconds: float
    total: float
    slowest: float
    order: tuple[int, ...]
    counts: tuple[int, ...]

    def is_better_than(self, other: Split | None) -> bool:
        """Whether value or, the values being equal, total is lower by more than rounding."""
        if other is None or self.seconds < other.seconds * (1 - EPSILON):
            return True
        return self.seconds <= other.seconds * (1 + EPSILON) and self.total < other.total * (
            1 - EPSILON
        )


def chain_ends(num_devices: int) -> Iterator[tuple[int, int]]:
    """Yield every choice of first and last device; the same one when there is no other."""
    if num_devices == 1:
        yield 0, 0
        return
    for first in range(num_devices):
        for last in range(num_devices):
            if first != last:
                yield first, last

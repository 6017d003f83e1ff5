"""The problem of splitting layers over devices, and what its answers look like. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from broker.plan import LayerRange

FORBIDDEN: Final = -(1 << 62)
"""Room in bytes where nothing may be, not even a part of it with the rest in host memory."""

EPSILON: Final = 1e-9
"""Values that differ by less, relative to their size, differ by rounding only."""


class Ends(StrEnum):
    """Which stage holds embedding and head."""

    CHAIN = "chain"
    """The first stage embeds, the last one has the head: ours, since the ring closes with
    the ids of tokens instead of their hidden states."""
    MASTER = "master"
    """One device has both, and any of the group may be it: as in llama.cpp and the paper.
    It comes first in the order of a split."""


@dataclass(frozen=True, slots=True)
class Offload:
    """What may lie in host memory when a device's own is full.

    A stage moves no more than it must, from its first layer on (the order in which llama.cpp
    offloads experts).

    Attributes:
        layer_bytes: [L], what moving a layer's part frees.
        extra_seconds: [N][L], what the moved part costs.
        host_bytes: [N], host memory that the device offers.
    """

    layer_bytes: Sequence[int]
    extra_seconds: Sequence[Sequence[float]]
    host_bytes: Sequence[int]


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
        ends: Where embedding and head are.
        stage_seconds: [N], what a stage takes beside its layers; empty for nothing.
        offload: None when everything stays in the devices' own memory.
        hop_seconds: [N][N], the way from one device to another; empty when the hops of a
            ring add up to the same in any order, as over one broker.
        endless: Devices that may have neither embedding nor head.
        pinned: Device to the only layers that it may hold.
    """

    layer_seconds: Sequence[Sequence[float]]
    first_seconds: Sequence[float]
    last_seconds: Sequence[float]
    layer_bytes: Sequence[int]
    first_bytes: int
    last_bytes: int
    shared_bytes: int
    memory_bytes: Sequence[int]
    ends: Ends = Ends.CHAIN
    stage_seconds: Sequence[float] = ()
    offload: Offload | None = None
    hop_seconds: Sequence[Sequence[float]] = ()
    endless: Collection[int] = ()
    pinned: Mapping[int, LayerRange] = field(default_factory=dict)

    def room_bytes(self, device: int, is_first: bool, is_last: bool) -> int:
        """Return what is left for layers beside the ends that the device holds."""
        if (is_first or is_last) and device in self.endless:
            return FORBIDDEN
        room = self.memory_bytes[device]
        room -= self.first_bytes if is_first else 0
        room -= self.last_bytes if is_last else 0
        return room + (self.shared_bytes if is_first and is_last else 0)

    def ends_seconds(self, device: int, is_first: bool, is_last: bool) -> float:
        """Return the time of the ends that the device holds, and what every stage takes."""
        ends = self.stage_seconds[device] if self.stage_seconds else 0.0
        ends += self.first_seconds[device] if is_first else 0.0
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
        total: Sum of the stages, and of the hops if the problem has a matrix of them.
        slowest: The slowest stage.
        order: [N], device indexes in stage order.
        counts: [N], layers of each stage.
        offloads: [N], of these how many have their movable part in host memory.
    """

    seconds: float
    total: float
    slowest: float
    order: tuple[int, ...]
    counts: tuple[int, ...]
    offloads: tuple[int, ...]

    def is_better_than(self, other: Split | None) -> bool:
        """Whether value or, the values being equal, total is lower by more than rounding."""
        if other is None or self.seconds < other.seconds * (1 - EPSILON):
            return True
        return self.seconds <= other.seconds * (1 + EPSILON) and self.total < other.total * (
            1 - EPSILON
        )


def chain_ends(num_devices: int, ends: Ends = Ends.CHAIN) -> Iterator[tuple[int, int]]:
    """Yield every choice of the devices with embedding and head; alone, a device has both."""
    for first in range(num_devices):
        if ends is Ends.MASTER or num_devices == 1:
            yield first, first
            continue
        for last in range(num_devices):
            if first != last:
                yield first, last

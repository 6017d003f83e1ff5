"""Which other devices hand on which tensors, as they have announced it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from broker.control import TensorOffer


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A device that hands a tensor on, under ``url``."""

    device: str
    url: str


class Neighbours:
    """The newest offer of each other device.

    The node's loop writes while threads that load read: each change is a new mapping.

    Args:
        device: This one; what it offers itself is nobody else's.
    """

    def __init__(self, device: str = "") -> None:
        self._device = device
        self._offers: dict[str, TensorOffer] = {}

    def hear(self, device: str, offer: TensorOffer | None) -> None:
        """Take in what a device announced; None: it took that back."""
        known = self._offers.get(device)
        if device == self._device or (known and offer and offer.session < known.session):
            return
        others = {name: each for name, each in self._offers.items() if name != device}
        self._offers = others if offer is None else {**others, device: offer}

    def is_awaited(self, device: str, revision: str) -> bool:
        """Whether a device hands tensors on, and has not said yet what it has of a model."""
        offer = self._offers.get(device)
        return offer is not None and not offer.tensors.get(revision)

    def holders(self, revision: str, position: int) -> list[Neighbour]:
        """Return who has the tensor at ``position`` among the sorted names of a model."""
        return [
            Neighbour(device, offer.url)
            for device, offer in self._offers.items()
            if _contains(offer.tensors.get(revision, ()), position)
        ]


def ranges_of(positions: Iterable[int]) -> list[tuple[int, int]]:
    """Return ascending positions as half-open ranges."""
    ranges: list[tuple[int, int]] = []
    for position in positions:
        if ranges and ranges[-1][1] == position:
            ranges[-1] = ranges[-1][0], position + 1
        else:
            ranges.append((position, position + 1))
    return ranges


def _contains(ranges: Sequence[tuple[int, int]], position: int) -> bool:
    index = bisect_right(ranges, (position, float("inf"))) - 1
    return index >= 0 and ranges[index][0] <= position < ranges[index][1]

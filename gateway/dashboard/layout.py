"""Where things go in a picture: boxes in rows that wrap. Pure geometry, in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Size(NamedTuple):
    """Of a box."""

    width: float
    height: float


class Place(NamedTuple):
    """The upper left corner of a box."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Flow:
    """Boxes in rows: their places in the given order, and the size of all together."""

    places: tuple[Place, ...]
    width: float
    height: float


def flow(sizes: Sequence[Size], width: float, gap: Size) -> Flow:
    """Place boxes from left to right, in a new row where one would go beyond ``width``.

    A box that is wider than that has a row for itself. A row is as high as its highest box.

    Args:
        sizes: Of the boxes.
        width: That there is.
        gap: Between boxes of a row, and between rows.
    """
    places: list[Place] = []
    x = y = row_height = widest = 0.0
    for size in sizes:
        if x and x + size.width > width:
            x, y, row_height = 0.0, y + row_height + gap.height, 0.0
        places.append(Place(x, y))
        row_height = max(row_height, size.height)
        widest = max(widest, x + size.width)
        x += size.width + gap.width
    return Flow(tuple(places), widest, y + row_height)


def shares(weights: Sequence[float], width: float, gap: float, least: float) -> list[float]:
    """Return the widths of columns, by weight and none below ``least``; sum and gaps fill all."""
    room = width - gap * (len(weights) - 1)
    spare = room - least * len(weights)
    total = sum(weights) or 1.0
    return [least + spare * weight / total for weight in weights]

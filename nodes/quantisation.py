"""Matrices rounded to eight or four bits, some rows at a time into memory that the result has.

Takes a matrix as tensors that lie below each other, one after the other: beside the result,
no more than one of them is in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import torch
import torch.nn.functional as F

from broker.architecture import INT4_GROUP

# What stays in the caches of small processors. The four-bit kernel packs whole multiples of
# its own tiles (32 or 64 rows) alike, alone and in a larger matrix.
SLICE_ROWS: Final = 64
_INT4_ROWS: Final = 16  # the kernel takes rows of weights by so many
_INT4_LEVELS: Final = 7
_INT4_ZERO: Final = 8
_SMALLEST_STEP: Final = 1e-30


def quantise_int8(tensors: Iterable[torch.Tensor], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whole numbers (rows, columns) and steps (rows,) of tensors below each other."""
    values, steps = None, torch.empty(rows)
    for start, part in _slices(tensors):
        if values is None:
            values = torch.empty((rows, part.shape[1]), dtype=torch.int8)
        step = (part.abs().amax(1) / 127).clamp_(min=_SMALLEST_STEP)
        values[start : start + len(part)] = (part / step[:, None]).round_()
        steps[start : start + len(part)] = step
    assert values is not None, "a matrix has at least one tensor"
    return values, steps


def quantise_int4(tensors: Iterable[torch.Tensor], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix as the four-bit kernel takes it, its rows filled up to whole sixteens.

    Returns:
        Packed levels, and bfloat16 (groups, filled rows, 2): the step and the offset of each
        group of columns. Levels lie evenly around 0, so all offsets are 0.
    """
    filled = rows + -rows % _INT4_ROWS
    packed, steps = None, None
    for start, part in _slices(tensors):
        part = F.pad(part, (0, 0, 0, -len(part) % _INT4_ROWS))
        groups = part.view(len(part), -1, INT4_GROUP)
        # Rounded as the kernel holds them, so that values are nearest to what it computes.
        step = (groups.abs().amax(2) / _INT4_LEVELS).bfloat16().float().clamp_(min=_SMALLEST_STEP)
        level = (groups / step[..., None]).round_().clamp_(-8, 7)
        values = level.flatten(1).int().add_(_INT4_ZERO)
        tiles = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
        if packed is None or steps is None:
            packed = tiles.new_empty((filled, *tiles.shape[1:]))
            steps = torch.zeros((groups.shape[1], filled, 2), dtype=torch.bfloat16)
        packed[start : start + len(tiles)] = tiles
        steps[:, start : start + len(tiles), 0] = step.t()
    assert packed is not None, "a matrix has at least one tensor"
    assert steps is not None, "they are made together"
    return packed, steps


def _slices(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield rows by `SLICE_ROWS`, only the last time less, with the number of the first.

    In float32, in memory that the next slice overwrites; no tensor is kept while the one
    after it is made.
    """
    buffer, count, start = torch.empty(0), 0, 0
    for tensor in tensors:
        if not buffer.numel():
            buffer = torch.empty((SLICE_ROWS, tensor.shape[1]))
        taken = 0
        while taken < len(tensor):
            added = min(SLICE_ROWS - count, len(tensor) - taken)
            buffer[count : count + added] = tensor[taken : taken + added]
            count, taken = count + added, taken + added
            if count == SLICE_ROWS:
                yield start, buffer
                start, count = start + count, 0
        del tensor
    if count:
        yield start, buffer[:count]

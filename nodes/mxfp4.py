"""MXFP4, in which gpt-oss is published: numbers of four bits, 32 of them with a common scale.

The format is that of the Open Compute Project (OCP Microscaling Formats 1.0): a number is a
sign, two bits of exponent and one of fraction, a scale is a power of two.
"""

from __future__ import annotations

from typing import Final

import torch

_MAGNITUDES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NUMBERS: Final = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES)])
# By byte: the first of two numbers is in the lower half.
_PAIRS: Final = torch.stack((_NUMBERS.repeat(16), _NUMBERS.repeat_interleave(16)), 1)
_SCALE_OF_ONE: Final = 127


def mxfp4_floats(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the floats of a matrix.

    Args:
        blocks: (rows, columns / 32, 16) bytes.
        scales: (rows, columns / 32) bytes: exponents of two, plus 127.

    Returns:
        (rows, columns) in float32.
    """
    numbers = _PAIRS[blocks.int()].flatten(2)
    return torch.ldexp(numbers, scales.int()[..., None] - _SCALE_OF_ONE).flatten(1)

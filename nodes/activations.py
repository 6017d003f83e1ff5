"""Rows of activations on their way into a matrix: normalised, and rounded to whole numbers."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F

from nodes.kernels import FULL_BITS

_FLOAT_BYTES: Final = torch.float32.itemsize
_ZERO: Final = torch.zeros(())


class Norm:
    """A normalisation by root mean square, with a gain for each column."""

    def __init__(self, gains: torch.Tensor, epsilon: float) -> None:
        self.gains = gains
        self._epsilon = epsilon
        self._added = gains.new_full((), epsilon)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, columns) of the same, in the element type of ``x``."""
        return F.rms_norm(x, self.gains.shape, self.gains, self._epsilon)

    def factors(self, x: torch.Tensor) -> torch.Tensor:
        """Return what each row is multiplied by, beside the gains: (n, 1)."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.addcmul(self._added, length, length, value=1 / x.shape[1]).rsqrt_()

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return self.gains.nbytes


class Codes(NamedTuple):
    """Rows of activations as whole numbers: ``step * whole + offset``.

    Attributes:
        whole: uint8 (n, columns).
        step: float32 (n, 1).
        offset: float32 (n, 1).
    """

    whole: torch.Tensor
    step: torch.Tensor
    offset: torch.Tensor


def encode(x: torch.Tensor, bits: int, norm: Norm | None = None) -> Codes:
    """Round each row of float32 (n, columns) by itself, between its smallest and its largest.

    A row's codes are the same before and after it is divided by its root mean square, so
    that ``norm`` reaches only the step and the offset.
    """
    columns = x.shape[1]
    # Made for the rows of an embedding; each row's step and offset stand behind its codes.
    rounded = torch.ops.quantized.embedding_bag_byte_prepack(x * norm.gains if norm else x)
    scales = rounded.narrow(1, columns, 2 * _FLOAT_BYTES)
    if columns % _FLOAT_BYTES:  # they lie at no address of a float
        scales = scales.clone(memory_format=torch.contiguous_format)
    scales = scales.view(torch.float32)
    # A row that is no number has codes nevertheless; neither way is its result a number.
    if norm:
        scales = scales * norm.factors(x)
    else:
        scales = torch.addcmul(scales, x.amax(-1, keepdim=True), _ZERO)
    step, offset = scales.narrow(1, 0, 1), scales.narrow(1, 1, 1)
    whole = rounded.narrow(1, 0, columns).contiguous()
    if bits < FULL_BITS:
        # Halves lie in the middle of the two codes that they stand for.
        whole, step, offset = whole >> 1, step * 2, offset + step / 2
    return Codes(whole, step, offset)

"""KV on its way from one replica to another: as it is held, or in whole numbers for slow links.

In int8 each row, one head's key or value at one position, is divided by its largest magnitude
over 127 and rounded; its divisor follows as four bytes of float32. A row depends on nothing
but itself, so equal KV always gives equal bytes. What the receiver holds then differs from
what the sender holds, so answers are outside the promise of equal tokens.
"""

from __future__ import annotations

from typing import Final, Protocol

import torch

from broker.architecture import KV_TRANSFERS
from broker.codec import Buffer
from broker.work import ITEMSIZE, TensorMeta
from nodes.tensors import DTYPES, from_bytes

_LEVELS: Final = 127
_DIVISOR_BYTES: Final = ITEMSIZE["float32"]
_SMALLEST_DIVISOR: Final = 1e-30


class KvWire(Protocol):
    """One way in which KV travels."""

    def row_bytes(self, head_dim: int) -> int:
        """Return the bytes of one head's key or value at one position."""

    def packed(self, part: torch.Tensor) -> torch.Tensor:
        """Return a contiguous copy of ``part`` (..., head_dim) as it travels."""

    def unpacked(self, data: Buffer, meta: TensorMeta, shape: tuple[int, ...]) -> torch.Tensor:
        """Return what arrived, of ``shape``; ValueError when it is something else."""


class ExactWire:
    """KV travels as it is held, in ``dtype``."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def row_bytes(self, head_dim: int) -> int:
        """Return the bytes of one head's key or value at one position."""
        return head_dim * self._dtype.itemsize

    def packed(self, part: torch.Tensor) -> torch.Tensor:
        """Return a contiguous copy."""
        return part.clone(memory_format=torch.contiguous_format)

    def unpacked(self, data: Buffer, meta: TensorMeta, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the values over the memory of ``data``."""
        _check(meta, self._dtype, shape)
        return from_bytes(data, meta)


class Int8Wire:
    """Rows of whole numbers, each with its divisor behind it."""

    def row_bytes(self, head_dim: int) -> int:
        """Return the bytes of one head's key or value at one position."""
        return head_dim + _DIVISOR_BYTES

    def packed(self, part: torch.Tensor) -> torch.Tensor:
        """Return int8 (..., head_dim + 4)."""
        rows = part.float()
        divisors = (rows.abs().amax(-1, keepdim=True) / _LEVELS).clamp_(min=_SMALLEST_DIVISOR)
        numbers = (rows / divisors).round_().to(torch.int8)
        return torch.cat((numbers, divisors.view(torch.int8)), -1)

    def unpacked(self, data: Buffer, meta: TensorMeta, shape: tuple[int, ...]) -> torch.Tensor:
        """Return float32 values."""
        head_dim = shape[-1]
        _check(meta, torch.int8, (*shape[:-1], self.row_bytes(head_dim)))
        rows = from_bytes(data, meta)
        divisors = rows[..., head_dim:].contiguous().view(torch.float32)
        return rows[..., :head_dim] * divisors


def kv_wire(transfer: str, dtype: torch.dtype) -> KvWire:
    """Return how KV that is held in ``dtype`` travels; ValueError for an unknown ``transfer``."""
    if transfer not in KV_TRANSFERS:
        known = ", ".join(KV_TRANSFERS)
        raise ValueError(f"KV transfer {transfer!r} is unknown; use one of {known}")
    return Int8Wire() if transfer == "int8" else ExactWire(dtype)


def _check(meta: TensorMeta, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if DTYPES[meta.dtype] != dtype or meta.shape != shape:
        raise ValueError(f"KV of {meta.dtype} {meta.shape}, expected {dtype} {shape}")

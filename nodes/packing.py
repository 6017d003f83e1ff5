"""How the matrices of one weight format are made from a checkpoint's tensors.

Tensor by tensor: beside what is held, at most one of them is in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import torch

from broker.architecture import is_integer, matrix_format
from nodes.float_kernels import can_pack
from nodes.kernels import Int8Kernel, exact_kernels
from nodes.packed import (
    Embedding,
    FloatEmbedding,
    FloatLinear,
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    Linear,
    PackedFloatLinear,
    StackedLinear,
    check_int4,
)
from nodes.quantisation import quantise_int4, quantise_int8
from nodes.tensors import DTYPES

# Packed at a time, since a head may be a third of a small model. Not less: in parts of a
# quarter of that a kernel takes a seventh longer, since each call begins with cold caches.
_HEAD_BYTES: Final = 1 << 25
_HEAD_ROWS: Final = 1 << 10  # a multiple of them


REFERENCE: Final = "float64"
"""The format of a replay that tells near ties from errors; no fog serves it."""
_DTYPES: Final = {**DTYPES, REFERENCE: torch.float64}


class _Rows:
    """Rows of tensors that lie below each other, taken from the first one on."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._tensors = iter(tensors)
        self._left: torch.Tensor | None = None

    def take(self, count: int) -> Iterator[torch.Tensor]:
        """Yield the next ``count`` rows, in tensors of any lengths."""
        while count:
            tensor = next(self._tensors) if self._left is None else self._left
            part, self._left = tensor[:count], tensor[count:] if len(tensor) > count else None
            count -= len(part)
            del tensor
            yield part
            del part  # not kept while the next one is read


class Packing:
    """Makes the matrices of one format.

    Args:
        weights: One of `broker.architecture.WEIGHT_FORMATS`, or `REFERENCE`.
        device: Where they are held; int8 and int4 are held by the CPU.
        kernel: Multiplies int8 weights; None: any that is exact.

    Attributes:
        dtype: Of hidden states between the matrices, and of norms and biases.

    Raises:
        UnsupportedModelError: The format is unknown, or this device cannot use it.
    """

    def __init__(self, weights: str, device: torch.device, kernel: Int8Kernel | None) -> None:
        self._is_integer = weights != REFERENCE and is_integer(weights)
        self.dtype = torch.float32 if self._is_integer else _DTYPES[weights]
        self._weights, self._device = weights, device
        if self._is_integer:
            # A matrix that four bits do not fit is held in eight.
            self._kernel = kernel or exact_kernels()[0]
        if weights == "int4":
            check_int4()

    def linear(
        self,
        tensors: Iterable[torch.Tensor],
        shape: tuple[int, int],
        bias: torch.Tensor | None = None,
    ) -> Linear:
        """Return a block's matrix made of tensors that lie below each other."""
        form = matrix_format(self._weights, shape[1]) if self._is_integer else self._weights
        if form == "int4":
            return Int4Linear(*quantise_int4(tensors, shape[0]), shape[0], bias)
        if form == "int8":
            return Int8Linear(self._kernel, *quantise_int8(tensors, shape[0]), bias)
        matrix = self.merged(tensors, shape)
        is_packed = self._device.type == "cpu" and can_pack(self.dtype)
        return PackedFloatLinear(matrix, bias) if is_packed else FloatLinear(matrix, bias)

    def head(self, tensors: Iterable[torch.Tensor], shape: tuple[int, ...]) -> Linear:
        """Return the head's matrix."""
        if not self._is_integer:
            return FloatLinear(self.merged(tensors, shape))
        rows = max(_HEAD_BYTES // shape[1] // _HEAD_ROWS, 1) * _HEAD_ROWS
        below = _Rows(tensors)
        counts = [min(rows, shape[0] - start) for start in range(0, shape[0], rows)]
        return StackedLinear(
            [Int8Linear(self._kernel, *quantise_int8(below.take(count), count)) for count in counts]
        )

    def embedding(self, tensors: Iterable[torch.Tensor], shape: tuple[int, ...]) -> Embedding:
        """Return the embedding."""
        if self._is_integer:
            return Int8Embedding(*quantise_int8(tensors, shape[0]))
        return FloatEmbedding(self.merged(tensors, shape))

    def merged(self, tensors: Iterable[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        """Return tensors below each other in one, in `dtype`.

        Always in memory of torch: bytes from a file may lie at any address, and kernels may
        add in another order at another alignment.
        """
        merged = torch.empty(shape, dtype=self.dtype, device=self._device)
        start = 0
        for tensor in tensors:
            merged[start : start + len(tensor)] = tensor
            start += len(tensor)
            del tensor  # not kept while the next one is read
        return merged

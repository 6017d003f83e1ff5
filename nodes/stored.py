"""Bytes of a checkpoint's tensors as numbers: plain floats, and the quantised kinds of GGUF.

A quantised tensor stays as it is stored until it is used, and becomes floats some rows at a
time. What llama.cpp changes in a tensor is undone here. The kinds are read by the package of
the format's makers, which comes with the extra ``gguf``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import prod
from typing import Any, Final

import numpy as np
import torch

from broker.control import TensorInfo

STORED_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,  # blocks and scales of MXFP4
}
# Floats made at a time, and the most rows: a power of two, so that parts fit into larger ones.
_PART_ELEMENTS: Final = 1 << 20
_MOST_ROWS: Final = 1 << 10


class UnknownKindError(Exception):
    """Elements are stored in a way that this node cannot read; the message has the remedy."""


class QuantisedTensor:
    """A tensor in blocks of a kind of GGUF.

    Args:
        data: Its bytes.
        kind: For example ``Q4_K``.
        shape: Of the floats that it stands for; rows are whole blocks.
        paired_heads: As in `broker.control.TensorInfo`.

    Raises:
        UnknownKindError: As it says.
    """

    def __init__(
        self, data: bytearray, kind: str, shape: tuple[int, ...], paired_heads: int = 0
    ) -> None:
        self.shape: Final = shape
        self._kind = _quantised_kind(kind).gguf_type
        rows = torch.frombuffer(data, dtype=torch.uint8).view(prod(shape[:-1]), -1)
        self._rows = _unpaired(rows, paired_heads)

    def parts(self) -> Iterator[torch.Tensor]:
        """Yield the rows in float32, some at a time."""
        import gguf

        columns = self.shape[-1]
        rows = min(_MOST_ROWS, 1 << max(_PART_ELEMENTS // columns, 1).bit_length() - 1)
        for part in torch.split(self._rows, rows):
            yield torch.from_numpy(gguf.dequantize(part.numpy(), self._kind))


Stored = torch.Tensor | QuantisedTensor
"""A tensor as its file has it, in its shape."""


def stored_bytes(info: TensorInfo) -> int:
    """Return how many bytes a tensor of that kind and shape has.

    Raises:
        UnknownKindError: As it says, or the shape is not made of whole blocks.
    """
    dtype = STORED_DTYPES.get(info.dtype)
    if dtype is not None:
        return prod(info.shape) * dtype.itemsize
    kind = _quantised_kind(info.dtype)
    columns = info.shape[-1] if info.shape else 1
    if columns % kind.block_elements:
        raise UnknownKindError(
            f"rows of {columns} elements are not made of whole blocks of {info.dtype}"
        )
    return prod(info.shape) // kind.block_elements * kind.block_bytes


def stored_tensor(info: TensorInfo, data: bytearray) -> Stored:
    """Return the tensor of these bytes, as a checkpoint of transformers would have it.

    Raises:
        UnknownKindError: As it says.
    """
    dtype = STORED_DTYPES.get(info.dtype)
    if dtype is None:
        return QuantisedTensor(data, info.dtype, info.shape, info.paired_heads)
    if not data:
        return torch.empty(info.shape, dtype=dtype)
    tensor = _unpaired(torch.frombuffer(data, dtype=dtype).view(info.shape), info.paired_heads)
    return tensor - info.added if info.added else tensor


def _unpaired(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Return rows of heads in which those that are rotated together are half a head apart."""
    if not heads:
        return rows
    paired = rows.view(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return paired.transpose(1, 2).reshape(rows.shape)


class _Kind:
    """A quantised kind, as the package describes it."""

    def __init__(self, gguf_type: Any, block_elements: int, block_bytes: int) -> None:
        self.gguf_type = gguf_type
        self.block_elements, self.block_bytes = block_elements, block_bytes


@cache
def _quantised_kind(name: str) -> _Kind:
    try:
        import gguf
    except ImportError as error:
        raise UnknownKindError(
            f"elements of kind {name} need the package gguf on this device: "
            "pip install 'e2llm[gguf]'"
        ) from error
    try:
        gguf_type = gguf.GGMLQuantizationType[name]
        block_elements, block_bytes = gguf.GGML_QUANT_SIZES[gguf_type]
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), gguf_type)
    except (KeyError, NotImplementedError) as error:
        raise UnknownKindError(
            f"elements of kind {name} cannot be read; choose a checkpoint in floats, or a GGUF "
            "file of Q8_0, Q6_K or Q4_K"
        ) from error
    return _Kind(gguf_type, block_elements, block_bytes)

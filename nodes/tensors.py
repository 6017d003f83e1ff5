"""Tensors as bytes on the bus and back, without copies. Row-major, little-endian."""

from __future__ import annotations

import ctypes
from typing import Final

import numpy as np
import torch

from broker.codec import Buffer
from broker.work import TensorMeta

DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def meta_of(tensor: torch.Tensor) -> TensorMeta:
    """Return what a header says about ``tensor``; ValueError for a dtype not on the bus."""
    name = _NAMES.get(tensor.dtype)
    if name is None:
        raise ValueError(f"{tensor.dtype} tensors do not travel; use one of {', '.join(DTYPES)}")
    return TensorMeta(name, tuple(tensor.shape))


def to_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the tensor's bytes: a view when it is contiguous and on the CPU, else a copy."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # numpy knows no bfloat16, so the elements leave torch as plain bytes.
    return flat.view(torch.uint8).numpy().data


def from_bytes(view: Buffer, meta: TensorMeta) -> torch.Tensor:
    """Return a tensor over the memory of ``view``; never write into it.

    The memory may be read-only (a received payload): the tensor keeps it alive.

    Raises:
        ValueError: The number of bytes is not the one that ``meta`` says.
    """
    data = memoryview(view).cast("B")
    if len(data) != meta.num_bytes:
        raise ValueError(f"{len(data)} bytes for {meta}, expected {meta.num_bytes}")
    if not len(data):
        return torch.empty(meta.shape, dtype=DTYPES[meta.dtype])
    owner = _claim_writable(data) if data.readonly else data
    return torch.frombuffer(owner, dtype=DTYPES[meta.dtype]).view(meta.shape)


def _claim_writable(data: memoryview) -> ctypes.Array[ctypes.c_ubyte]:
    """Return the same memory as an object that does not say that it is read-only.

    torch warns about read-only memory once per process; silencing that would change the
    warning filters of all threads. torch keeps the array alive, and the array ``data``.
    """
    address = np.frombuffer(data, np.uint8).ctypes.data
    array = (ctypes.c_ubyte * len(data)).from_address(address)
    array.owner = data  # type: ignore[attr-defined]
    return array

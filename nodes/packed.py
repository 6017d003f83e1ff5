"""Weight matrices as they lie in memory, and the product of rows with them.

A row's result never depends on how many other rows come with it (design, section 4):

- int8: each row of activations is divided by its own step, so that its largest magnitude is
  the largest whole number; rows of weights have a step each. Sums of whole numbers are exact
  (`nodes.kernels`), so a row's bits are the same in any company.
- int4: weights in groups of 128 columns with a step each, activations in bfloat16; the kernel
  goes row by row.
- float32, bfloat16: torch's linear, equal but for the order of a sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Final, Protocol

import torch
import torch.nn.functional as F

from broker.architecture import INT4_GROUP, UnsupportedModelError
from nodes.kernels import Int8Kernel

_SLICE_ROWS: Final = 256  # what stays in the caches of small processors
_SMALLEST_STEP: Final = 1e-30
_INT4_ROWS: Final = 16  # the kernel takes rows of weights by so many
_INT4_LEVELS: Final = 7


class Linear(Protocol):
    """A matrix (rows, columns) that is multiplied from the right, with its bias."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, rows) of (n, columns), in the element type of ``x``."""

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""


class FloatLinear:
    """A matrix in float32 or bfloat16."""

    def __init__(self, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.matrix, self._bias = matrix, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.matrix, self._bias)

    @property
    def num_bytes(self) -> int:
        return self.matrix.nbytes + _nbytes(self._bias)


class Int8Linear:
    """A matrix of whole numbers with a step per row, packed for one kernel."""

    def __init__(
        self,
        kernel: Int8Kernel,
        values: torch.Tensor,
        steps: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> None:
        self._sums, self._ends = kernel.pack(values)
        self._columns, self._levels = values.shape[1], kernel.levels
        self._steps, self._bias = steps, bias
        self._smallest = torch.tensor(_SMALLEST_STEP)
        self._values_bytes = values.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        largest = x.abs().amax(-1, keepdim=True)
        steps = torch.add(self._smallest, largest, alpha=1 / self._levels)
        whole = x.new_empty((len(x), self._columns + len(self._ends)))
        whole[:, self._columns :] = self._ends
        torch.div(x, steps, out=whole[:, : self._columns])
        if not math.isfinite(steps.sum()):
            # A row that is no number must not reach the others through a kernel's range.
            whole.nan_to_num_(0.0, 0.0, 0.0)
        result = self._sums(whole.round_()).mul_(self._steps).mul_(steps)
        return result if self._bias is None else result.add_(self._bias)

    @property
    def num_bytes(self) -> int:
        return self._values_bytes + self._steps.nbytes + _nbytes(self._bias)


class StackedLinear:
    """Matrices below each other, each packed alone: packing a large one takes little memory."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self._parts = tuple(parts)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self._parts], -1)

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self._parts)


class Int4Linear:
    """A matrix of four bits with a step per row and group of columns."""

    def __init__(
        self, values: torch.Tensor, steps: torch.Tensor, bias: torch.Tensor | None = None
    ) -> None:
        """Pack ``values``, int32 of 0 to 15 (rows, columns), and ``steps`` (groups, rows)."""
        self._rows = len(values)
        values = F.pad(values, (0, 0, 0, -self._rows % _INT4_ROWS), value=8)
        steps = F.pad(steps, (0, -self._rows % _INT4_ROWS))
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
        # Step and offset; the levels lie evenly around 0, so all offsets are 0.
        self._steps = torch.stack((steps, torch.zeros_like(steps)), -1).bfloat16()
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.bfloat16(), self._packed, INT4_GROUP, self._steps
        )
        result = result[:, : self._rows].to(x.dtype)
        return result if self._bias is None else result.add_(self._bias)

    @property
    def num_bytes(self) -> int:
        packed: int = self._packed.nbytes
        return packed + self._steps.nbytes + _nbytes(self._bias)


class Int8Embedding:
    """Rows of whole numbers with a step each, looked up and not multiplied."""

    def __init__(self, values: torch.Tensor, steps: torch.Tensor) -> None:
        self._values, self._steps = values, steps

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 (n, columns)."""
        return self._values[ids].float().mul_(self._steps[ids, None])

    @property
    def num_bytes(self) -> int:
        return self._values.nbytes + self._steps.nbytes


class FloatEmbedding:
    """Rows in float32 or bfloat16, looked up."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (n, columns) in the matrix's element type."""
        return F.embedding(ids, self.matrix)

    @property
    def num_bytes(self) -> int:
        return self.matrix.nbytes


Embedding = FloatEmbedding | Int8Embedding


def quantise_int8(tensors: Iterable[torch.Tensor], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whole numbers (rows, columns) and steps (rows,) of tensors below each other.

    Takes the tensors one after the other and some rows at a time, so that no more than one
    of them is in memory beside the result.
    """
    values, steps = None, torch.empty(rows)
    start = 0
    for tensor in tensors:
        if values is None:
            values = torch.empty((rows, tensor.shape[1]), dtype=torch.int8)
        for part in torch.split(tensor, _SLICE_ROWS):
            end = start + len(part)
            part = part.float()
            step = (part.abs().amax(1) / 127).clamp_(min=_SMALLEST_STEP)
            values[start:end] = (part / step[:, None]).round_()
            steps[start:end] = step
            start = end
    assert values is not None, "a matrix has at least one tensor"
    return values, steps


def quantise_int4(tensors: Iterable[torch.Tensor], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values 0 to 15 (rows, columns) for `Int4Linear`, and steps (groups, rows)."""
    values, steps = [], []
    for tensor in tensors:
        groups = tensor.float().view(len(tensor), -1, INT4_GROUP)
        # Rounded as the kernel holds them, so that values are nearest to what it computes.
        step = (groups.abs().amax(2) / _INT4_LEVELS).bfloat16().float().clamp_(min=_SMALLEST_STEP)
        level = (groups / step[..., None]).round_().clamp_(-8, 7)
        values.append((level.flatten(1) + 8).int())
        steps.append(step.t())
    assert sum(map(len, values)) == rows, "the tensors are the matrix"
    return torch.cat(values), torch.cat(steps, 1)


@cache
def check_int4() -> None:
    """Try the four-bit kernel of this build of torch on this device.

    Raises:
        UnsupportedModelError: It is missing, wrong, or gives a row another result in other
            company.
    """
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(48, 2 * INT4_GROUP, generator=generator)
    x = torch.randn(9, 2 * INT4_GROUP, generator=generator)
    remedy = "use int8 weights on this device, or another build of torch"
    try:
        linear = Int4Linear(*quantise_int4([matrix], len(matrix)))
        together = linear(x)
        alone = torch.cat([linear(row[None]) for row in x])
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        text = str(error).splitlines()[0]
        raise UnsupportedModelError(f"torch cannot use int4 weights here: {text}; {remedy}") from (
            error
        )
    expected = F.linear(x, matrix)
    error_ratio = float((together - expected).norm() / expected.norm())
    if not torch.equal(alone, together) or not error_ratio < 0.2:
        raise UnsupportedModelError(f"torch's kernel for int4 weights is wrong here; {remedy}")


def _nbytes(bias: torch.Tensor | None) -> int:
    return 0 if bias is None else bias.nbytes

"""Weight matrices as they lie in memory, and the product of rows with them.

A row's result never depends on how many other rows come with it (design, section 4):

- int8: each row of activations has a step and an offset of its own, so that its codes are
  whole numbers from 0 on; rows of weights have a step each. Sums of whole numbers are exact
  (`nodes.kernels`), so a row's bits are the same in any company.
- int4: weights in groups of 128 columns with a step each, activations in bfloat16; the kernel
  goes row by row.
- float32, bfloat16: torch's linear, equal but for the order of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Protocol

import torch
import torch.nn.functional as F

from broker.architecture import INT4_GROUP, UnsupportedModelError
from nodes.activations import Codes, Norm, encode
from nodes.float_kernels import multiply, pack
from nodes.kernels import Int8Kernel
from nodes.quantisation import SLICE_ROWS, quantise_int4

Bare = Callable[[], object]
"""A call whose time is measured; what it gives is not used."""


class Linear(Protocol):
    """A matrix (rows, columns) that is multiplied from the right, with its bias."""

    def __call__(
        self, x: torch.Tensor, norm: Norm | None = None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return (n, rows) of (n, columns), in the element type of ``x``; memory of its own.

        With ``norm``, of the normalised rows, which then need not be written down. With
        ``residual`` (n, rows), the sum with it.
        """

    def bare(self, x: torch.Tensor) -> Bare:
        """Return a call of the kernel alone with rows like ``x``: the floor of a call's time."""

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""


class FloatLinear:
    """A matrix in float32 or bfloat16."""

    def __init__(self, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.matrix, self._bias = matrix, bias

    def __call__(
        self, x: torch.Tensor, norm: Norm | None = None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        return _sum(F.linear(norm(x) if norm else x, self.matrix, self._bias), residual)

    def bare(self, x: torch.Tensor) -> Bare:
        return partial(F.linear, x, self.matrix)

    @property
    def num_bytes(self) -> int:
        return self.matrix.nbytes + _nbytes(self._bias)


class PackedFloatLinear:
    """A matrix in float32 or bfloat16, packed for onednn."""

    def __init__(self, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._packed, self._bias = pack(matrix), bias
        self._matrix_bytes = matrix.nbytes

    def __call__(
        self, x: torch.Tensor, norm: Norm | None = None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        return _sum(multiply(norm(x) if norm else x, self._packed, self._bias), residual)

    def bare(self, x: torch.Tensor) -> Bare:
        return partial(multiply, x, self._packed, None)

    @property
    def num_bytes(self) -> int:
        return self._matrix_bytes + _nbytes(self._bias)


class Int8Linear:
    """A matrix of whole numbers with a step per row, packed for one kernel."""

    def __init__(
        self,
        kernel: Int8Kernel,
        values: torch.Tensor,
        steps: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> None:
        self._product, self._bits = kernel.pack(values, steps), kernel.bits
        # What an offset of 1 in all columns adds. In slices, since a sum of another type than
        # its input begins with a copy of all of it; the sums are exact.
        sums = [part.float().sum(1) for part in torch.split(values, SLICE_ROWS)]
        self._ones = torch.cat(sums).mul_(steps)
        self._bias = bias
        self._values_bytes = values.nbytes

    def __call__(
        self, x: torch.Tensor, norm: Norm | None = None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.of_codes(self.encode(x, norm), residual)

    def bare(self, x: torch.Tensor) -> Bare:
        return partial(self._product, self.encode(x).whole)

    def encode(self, x: torch.Tensor, norm: Norm | None = None) -> Codes:
        """Return rows as this matrix and those of the same kernel take them."""
        return encode(x, self._bits, norm)

    def of_codes(self, codes: Codes, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return float32 (n, rows) of rows that are encoded already."""
        product = self._product(codes.whole)
        start = self._bias if residual is None else _sum(residual, self._bias)
        if start is None:
            return product.mul_(codes.step).addcmul_(codes.offset, self._ones)
        return torch.addcmul(start, codes.offset, self._ones).addcmul_(product, codes.step)

    def write(self, codes: Codes, result: torch.Tensor) -> None:
        """Put what `of_codes` gives into (n, rows) of another tensor's columns."""
        torch.mul(codes.offset, self._ones, out=result)
        result.addcmul_(self._product(codes.whole), codes.step)
        if self._bias is not None:
            result.add_(self._bias)

    @property
    def num_rows(self) -> int:
        """Rows of the matrix."""
        return len(self._ones)

    @property
    def num_bytes(self) -> int:
        # The steps are the kernel's.
        return self._values_bytes + 2 * self._ones.nbytes + _nbytes(self._bias)


class StackedLinear:
    """Matrices below each other, each packed alone: packing a large one takes little memory.

    Args:
        parts: At least one; all for the same kernel.
    """

    def __init__(self, parts: Sequence[Int8Linear]) -> None:
        self._parts = tuple(parts)
        self._sizes = [part.num_rows for part in self._parts]

    def __call__(
        self, x: torch.Tensor, norm: Norm | None = None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        codes = self._parts[0].encode(x, norm)
        result = x.new_empty((len(x), sum(self._sizes)))
        for part, columns in zip(self._parts, torch.split(result, self._sizes, -1), strict=True):
            part.write(codes, columns)
        return _sum(result, residual)

    def bare(self, x: torch.Tensor) -> Bare:
        calls = [part.bare(x) for part in self._parts]
        return lambda: [call() for call in calls]

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self._parts)


class Int4Linear:
    """A matrix of four bits with a step per row and group of columns."""

    def __init__(
        self,
        packed: torch.Tensor,
        steps: torch.Tensor,
        rows: int,
        bias: torch.Tensor | None = None,
    ) -> None:
        """Take what `quantise_int4` gives for a matrix of so many rows."""
        self._packed, self._steps, self._rows = packed, steps, rows
        self._bias = bias

    def __call__(
        self, x: torch.Tensor, norm: Norm | None = None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        normed = x * norm.gains * norm.factors(x) if norm else x
        result = self._product(normed.bfloat16())[:, : self._rows].to(x.dtype)
        return _sum(_sum(result, self._bias), residual)

    def bare(self, x: torch.Tensor) -> Bare:
        return partial(self._product, x.bfloat16())

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self._packed, INT4_GROUP, self._steps
        )
        return result

    @property
    def num_bytes(self) -> int:
        return self._packed.nbytes + self._steps.nbytes + _nbytes(self._bias)


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
        linear = Int4Linear(*quantise_int4([matrix], len(matrix)), len(matrix))
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


def _sum(one: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
    return one if other is None else one + other


def _nbytes(bias: torch.Tensor | None) -> int:
    return 0 if bias is None else bias.nbytes

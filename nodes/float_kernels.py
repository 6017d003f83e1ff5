"""The product with float matrices that onednn has packed, where this build of torch has it.

Faster than torch's linear for groups of rows, and nearer to the same bits for any number of
them. There is nothing to choose by time, so that equal devices compute equally.
"""

from __future__ import annotations

import logging
import platform
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)

_ROWS_HINT: Final = 128
_PROBE: Final = (200, 300)
_TOLERANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def pack(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix (rows, columns) as `multiply` takes it."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix, _ROWS_HINT)
    return packed


def multiply(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return (n, rows) of (n, columns), in its element type."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return result


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether packed matrices of this type give the right products here; why not in the log."""
    if platform.machine().lower() not in ("x86_64", "amd64") or dtype not in _TOLERANCE:
        return False
    generator = torch.Generator().manual_seed(0)
    matrix, x = (torch.randn(_PROBE, generator=generator).to(dtype) for _ in range(2))
    expected = F.linear(x.double(), matrix.double())
    try:
        packed = pack(matrix)
        errors = [(multiply(x[:n], packed, None) - expected[:n]).norm() for n in (1, 8, len(x))]
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        logger.info("packed %s matrices are left out: %s", dtype, str(error).splitlines()[0])
        return False
    if not max(errors) <= _TOLERANCE[dtype] * expected.norm():
        logger.info("packed %s matrices are left out: their products are wrong here", dtype)
        return False
    return True

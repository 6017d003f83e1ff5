"""Refuses kernels whose rows depend on their neighbours in a batch.

An answer must be the same alone and in a batch. Some fast kernels break that (dynamic int8
takes one activation scale for all rows), so every weight format is tried on this device with
the model's own shapes before the device offers itself.
"""

from __future__ import annotations

from typing import Final

import torch

from broker.work import RequestKey
from nodes.executor import StageExecutor

NUM_ROWS: Final = 8

# Largest difference relative to the row's largest element. Float kernels sum in another order
# for another number of rows, which shows as a few units in the last place; a row that depends
# on its neighbours differs by per cents. Sums of whole numbers have no order.
TOLERANCE: Final = {"float32": 1e-4, "bfloat16": 5e-2, "int8": 0.0, "int4": 0.0}


class DependentRowsError(Exception):
    """A kernel of this device gives a row another result in other company."""


def check_rows(executor: StageExecutor, weights: str) -> None:
    """Run rows alone and together, through the blocks and the head.

    Args:
        executor: Holds embedding and head; its KV has room for `NUM_ROWS` short requests.
        weights: The format whose kernels are tried.

    Raises:
        DependentRowsError: Rows differ by more than the order of a sum explains.
    """
    vocabulary = executor.config.vocab_size
    # Very unequal rows, since a shared scale is set by the largest.
    hidden = executor.embed([(37 * row + 1) % vocabulary for row in range(NUM_ROWS)])
    hidden = hidden * torch.logspace(-1, 1, NUM_ROWS, dtype=hidden.dtype)[:, None]
    together = _decode(executor, list(range(NUM_ROWS)), hidden)
    logits = executor.logits(together)
    for row in range(NUM_ROWS):
        alone = _decode(executor, [row], hidden[row : row + 1])
        _compare("block", weights, alone[0], together[row])
        _compare("head", weights, executor.logits(together[row : row + 1])[0], logits[row])


def _decode(executor: StageExecutor, rows: list[int], hidden: torch.Tensor) -> torch.Tensor:
    keys = [RequestKey(f"selftest-{row}", 0) for row in rows]
    for key in keys:
        executor.open(key, 1)
    try:
        return executor.decode(keys, hidden)
    finally:
        for key in keys:
            executor.release(key)


def _compare(part: str, weights: str, alone: torch.Tensor, together: torch.Tensor) -> None:
    scale = alone.abs().max().clamp(min=1e-6)
    difference = float((alone.float() - together.float()).abs().max() / scale.float())
    if not difference <= TOLERANCE[weights]:
        raise DependentRowsError(
            f"the {weights} kernels of this device change a row by {difference:.1%} with its "
            f"neighbours (in the {part}), so answers would depend on other requests; use "
            "another weight format or another build of torch on this device"
        )

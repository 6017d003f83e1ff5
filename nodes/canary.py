"""A little computing that is the same every time."""

from __future__ import annotations

import time
from typing import Final

import torch

_SIZE: Final = 192
_BURST_SECONDS: Final = 0.05
"""Long enough for a processor to leave its idle frequency."""


def canary_seconds() -> float:
    """Return the least time of one small matrix product in a burst, in seconds of a core.

    Time of the thread and not of the wall: whether others use the cores is not asked here.
    """
    matrix = torch.ones(_SIZE, _SIZE)
    best = float("inf")
    ends = time.thread_time() + _BURST_SECONDS
    while (began := time.thread_time()) < ends:
        torch.mm(matrix, matrix)
        best = min(best, time.thread_time() - began)
    return max(best, 1e-9)

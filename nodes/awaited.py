"""Tensors that another device is about to read: taken from it, not from afar once more.

The two ends of a replica need the same matrix where the head is tied to the embedding. Read by
both, it alone made a small model with a large vocabulary cost its source a quarter more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from nodes.neighbours import Neighbours

_LOOK_SECONDS: Final = 0.05
# The other device reads at least as fast as that, or it is not waited for. A replica is not
# ready before its embedding is there, so that waiting for it costs the way between the two.
_PATIENCE_SECONDS: Final = 60.0
_SLOWEST_BYTES_PER_SECOND: Final = 1e6
# A planner takes a device that says nothing for five minutes while it loads for a failed one.
_LONGEST_SECONDS: Final = 200.0


def wait_for_offer(
    neighbours: Neighbours,
    device: str,
    revision: str,
    num_bytes: int,
    *,
    is_here: Callable[[], bool],
    pause: Callable[[float], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Return when a device hands a tensor on, or is not going to.

    Who has announced anything of the model has announced all that it has: with the tensor, or
    without, if its cache had no room. Who hands on nothing at all is not waited for.

    Args:
        neighbours: What others hand on.
        device: Who is about to read it.
        revision: Of the model.
        num_bytes: Of the tensor.
        is_here: Whether the tensor came meanwhile in another way.
        pause: Sleeps for seconds; what it raises ends the waiting.
        clock: Monotonic seconds.
    """
    patience = _PATIENCE_SECONDS + num_bytes / _SLOWEST_BYTES_PER_SECOND
    until = clock() + min(patience, _LONGEST_SECONDS)
    while neighbours.is_awaited(device, revision) and not is_here() and clock() < until:
        pause(_LOOK_SECONDS)

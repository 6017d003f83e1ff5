"""How many decode groups go round a replica's ring at once. Shared by planner and master.

With one group, all stages but one are idle; with more, each group is smaller and a step of
it is less efficient. The best number is a function of the stage times alone, so the planner
predicts with the same function with which the master acts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from broker.plan import BatchSeconds, Stage


@dataclass(frozen=True, slots=True)
class Grouping:
    """A number of groups in flight and what it promises.

    Attributes:
        num_groups: Groups in flight.
        group_rows: Rows of the largest group.
        step_seconds: Time from one token of a request to its next (TPOT).
        tokens_per_second: Of all requests together.
    """

    num_groups: int
    group_rows: int
    step_seconds: float
    tokens_per_second: float


def interpolate(points: Sequence[BatchSeconds], batch: float) -> float:
    """Return seconds at ``batch``: linear between points, beyond them along the last two."""
    if not points:
        return 0.0
    if batch <= points[0].batch or len(points) == 1:
        return points[0].seconds
    index = min(bisect_left([p.batch for p in points], batch), len(points) - 1)
    low, high = points[index - 1], points[index]
    slope = (high.seconds - low.seconds) / (high.batch - low.batch)
    return max(low.seconds + slope * (batch - low.batch), 0.0)


def step_seconds(stages: Sequence[Stage], num_groups: int, rows: int) -> float:
    """Return the time from one step of a group to its next, with ``rows`` in each group.

    At least the way round the ring, and at least the time in which the slowest stage serves all
    groups.
    """
    times = [interpolate(stage.decode_seconds, rows) for stage in stages]
    hops = sum(stage.hop_seconds for stage in stages)
    row_hops = sum(stage.hop_row_seconds for stage in stages)
    way = hops + (rows - 1) * row_hops
    return max(sum(times) + way, num_groups * max(times), 1e-9)


def best_grouping(stages: Sequence[Stage], num_rows: int) -> Grouping:
    """Return the G in 1..min(num_rows, 2 * stages) with the most tokens per second.

    Maximises ``b / max(sum t_s(b/G) + hops(b/G), G * max t_s(b/G))`` (design, section 4), which is
    `step_seconds`. Ties go to fewer groups.

    Args:
        stages: The replica's stages with ``decode_seconds`` and ``hop_seconds``.
        num_rows: Active requests b, at least 1.
    """
    if num_rows < 1:
        raise ValueError("a grouping needs at least one row")
    best: Grouping | None = None
    for num_groups in range(1, min(num_rows, 2 * len(stages)) + 1):
        rows = -(-num_rows // num_groups)
        step = step_seconds(stages, num_groups, rows)
        candidate = Grouping(num_groups, rows, step, num_rows / step)
        if best is None or candidate.tokens_per_second > best.tokens_per_second * (1 + 1e-9):
            best = candidate
    assert best is not None
    return best

"""Groups of devices whatever their blocks, host memory and ways. Pure.

The general counterpart of `planner.splits.linear_stages`: a problem is made for every group,
and `planner.splits.partition` solves it. The same group is asked for with many numbers of
slots, which differ in memory alone, so what is best with the least KV cache is found first:
nothing beats it with more, and mostly it still fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from planner.cost import DeviceCost, hop_seconds
from planner.model import ModelSpec
from planner.splits.equal_blocks import best_of_equal_blocks, has_equal_blocks
from planner.splits.partition import MAX_SUBSET_DEVICES, End, best_end, fits, pareto_splits
from planner.splits.split import EPSILON, Offload, Pace, Split, SplitProblem

_LEAST: Final = 1e-15


class AnyStages:
    """The best splits of a fog's groups.

    Args:
        costs: [N], the devices.
        model: Any.
        least_kv_tokens: KV positions for which every stage has room at least.
    """

    def __init__(self, costs: Sequence[DeviceCost], model: ModelSpec, least_kv_tokens: int) -> None:
        self._costs = costs
        self._model = model
        self._least_kv_tokens = least_kv_tokens
        self._has_ways = any(cost.peers for cost in costs)
        self._last_members: tuple[int, ...] = ()
        self._problems: dict[tuple[int | None, int], SplitProblem] = {}
        self._fronts: dict[tuple[int | None, int], list[End]] = {}

    def best_split(
        self,
        members: Sequence[int],
        rows: int | None,
        kv_tokens: int,
        pace: Pace,
        limit: float = inf,
    ) -> Split | None:
        """As `planner.splits.linear_stages.LinearStages.best_split`."""
        if len(members) > self._model.num_layers:
            return None
        if tuple(members) != self._last_members:
            self._last_members = tuple(members)
            self._problems.clear()
            self._fronts.clear()
        problem = self._problem(rows, kv_tokens)
        if problem.pinned and len(members) > MAX_SUBSET_DEVICES:
            return None
        if has_equal_blocks(problem) and not problem.pinned:
            return best_of_equal_blocks(problem, pace, limit)
        if _least_seconds(problem, pace) > limit * (1 + EPSILON):
            return None
        best = best_end(self._front(rows, self._least_kv_tokens), pace, limit)
        if best is None or fits(problem, best):
            return best
        return best_end(self._front(rows, kv_tokens), pace, limit)

    def _front(self, rows: int | None, kv_tokens: int) -> list[End]:
        key = rows, kv_tokens
        if key not in self._fronts:
            self._fronts[key] = pareto_splits(self._problem(*key))
        return self._fronts[key]

    def _problem(self, rows: int | None, kv_tokens: int) -> SplitProblem:
        """Return the group's problem: prefill when ``rows`` is None, else one decode step."""
        key = rows, kv_tokens
        if key not in self._problems:
            self._problems[key] = self._new_problem(*key)
        return self._problems[key]

    def _new_problem(self, rows: int | None, kv_tokens: int) -> SplitProblem:
        model = self._model
        costs = [self._costs[d] for d in self._last_members]
        phases = [cost.prefill if rows is None else cost.decode[rows - 1] for cost in costs]
        offload = None
        if any(cost.host_memory_bytes for cost in costs):
            none = (0.0,) * model.num_layers
            extras = [phase.offload_extra or none for phase in phases]
            hosts = [cost.host_memory_bytes for cost in costs]
            offload = Offload(model.ffn_bytes, extras, hosts)
        return SplitProblem(
            layer_seconds=[phase.layers for phase in phases],
            first_seconds=[phase.embedding for phase in phases],
            last_seconds=[phase.head for phase in phases],
            layer_bytes=[
                weights + kv_tokens * kv
                for weights, kv in zip(model.block_bytes, model.kv_bytes, strict=True)
            ],
            first_bytes=model.embedding_bytes,
            last_bytes=model.head_bytes,
            shared_bytes=model.shared_bytes,
            memory_bytes=[cost.memory_bytes for cost in costs],
            offload=offload,
            hop_seconds=[[hop_seconds(a, b, rows or 1) for b in costs] for a in costs]
            if self._has_ways
            else (),
            endless=[i for i, cost in enumerate(costs) if not cost.owner.holds_text],
            pinned={
                i: cost.owner.layers
                for i, cost in enumerate(costs)
                if cost.owner.layers is not None
            },
        )


def _least_seconds(problem: SplitProblem, pace: Pace) -> float:
    """Return what no split of a problem goes below: layers cut anywhere, no memory, no ends.

    A layer's work is its time on the first device; a device is as fast as with the layer that
    suits it best.
    """
    work = [float(seconds) for seconds in problem.layer_seconds[0]]
    speeds = [
        max(w / max(seconds, _LEAST) for w, seconds in zip(work, row, strict=True))
        for row in problem.layer_seconds
    ]
    total = sum(min(column) for column in zip(*problem.layer_seconds, strict=True))
    slowest = sum(work) / max(sum(speeds), _LEAST)
    return pace.seconds(slowest, total)

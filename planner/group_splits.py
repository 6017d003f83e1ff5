"""The best splits of one group of devices for prompts and for answers, and what no split exceeds.

Pure. Splits are made for speed. How many requests a replica decodes at once is part of the
choice: as many as give the most tokens per second and keep what each is promised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil, inf
from typing import Final, NamedTuple

from planner.cost import DeviceCost, hop_seconds
from planner.model import ModelSpec, Objective, Workload
from planner.performance import Most, Performance
from planner.promises import FEWER_SLOTS_GAIN, Promises, groupings
from planner.splits.any_stages import AnyStages
from planner.splits.linear_stages import LinearStages
from planner.splits.partition import MAX_ORDERED_DEVICES, MAX_SUBSET_DEVICES
from planner.splits.split import EPSILON, Pace, Split

# Less than this is rounding.
_WORTH: Final = 1e-9
_TOTAL: Final = Pace(weight=1.0)
"""What is to be small is the sum of all stages, which is never less than the slowest one."""


class _Way(NamedTuple):
    """How a group is split, and what its hops and links take beside its stages.

    Attributes:
        hops: From the rows of a decode group to the seconds of a ring's hops; 0 where the
            problem of the split knows them.
        link_seconds: Of the busiest link, per row.
    """

    stages: AnyStages | LinearStages
    hops: Callable[[int], float]
    link_seconds: float


class _Fastest(NamedTuple):
    """The split for the most tokens per second, and the least seconds per token of any."""

    split: Split | None
    token_seconds: float


class GroupSplits:
    """Splits over the devices of one fog."""

    def __init__(
        self,
        costs: Sequence[DeviceCost],
        model: ModelSpec,
        workload: Workload,
        objective: Objective,
        promises: Promises,
    ) -> None:
        self._costs = costs
        self._model = model
        self._workload = workload
        self._objective = objective
        self._promises = promises
        self._context_tokens = promises.context_tokens
        self._has_ways = any(cost.peers for cost in costs)
        self._any_stages = AnyStages(costs, model, self._context_tokens)
        self._lines = LinearStages(costs, model) if LinearStages.describes(costs, model) else None
        self._pinned = {d for d, cost in enumerate(costs) if cost.owner.layers is not None}
        self._without_ways: AnyStages | LinearStages | None = None

    def prefill(self, members: Sequence[int]) -> Performance | None:
        """Balance the stages for prompts; room for more prompts at once may cost balance."""
        prompt = self._promises.prompt_tokens
        # With room for one prompt stages balance best, and no pipeline is faster than its
        # slowest stage.
        split = self._split(members, Pace())
        if split is None:
            return None
        most_rate = self._prompt_rate(split, self._way(members))
        best = self._promised(members, split)
        rooms = {
            max(self._context_tokens, prompts * prompt) for prompts in range(2, len(members) + 2)
        }
        for kv_tokens in sorted(rooms - {self._context_tokens}, reverse=True):
            least = best.prefill_rate * (1 + _WORTH)
            if least >= most_rate:
                break
            limit = self._workload.prompt_tokens / least
            split = self._stages(members).best_split(members, None, kv_tokens, Pace(), limit)
            if split is not None:
                best = max(
                    best, self._promised(members, split), key=lambda found: found.prefill_rate
                )
        return best

    def decode(self, members: Sequence[int]) -> tuple[Performance, float]:
        """Find the number of slots, and the split, with the most tokens per second.

        Also return tokens per second that no split exceeds, in steps as long as those of the
        best may be; fewer slots count for that even where they gain next to nothing.
        """
        found = self._decode(members, self._way(members))
        assert found.split is not None, "a group that holds one request has a split"
        return self._promised(members, found.split), 1 / max(found.token_seconds, 1e-9)

    def most(self, members: Sequence[int], decode_rate: float) -> Most:
        """Return what no split of a group that holds the model exceeds.

        Args:
            members: Device indexes.
            decode_rate: As `decode` returned it.
        """
        way = self._way(members)
        if not self.tries_all_orders(members):
            # Any order, each hop the shortest there is: what is found first is a limit.
            way = self._without_order(members)
            decode_rate = 1 / max(self._decode(members, way).token_seconds, 1e-9)
        split = way.stages.best_split(members, None, self._context_tokens, Pace())
        assert split is not None, "the model fits"
        shortest = way.stages.best_split(members, None, self._context_tokens, _TOTAL)
        assert shortest is not None, "the model fits"
        step = self._step(members, 1, inf, way)
        assert step is not None, "the model fits"
        chunks = [ceil(n / self._workload.chunk_tokens) for n, _ in self._workload.prompt_shares]
        return Most(
            prefill_rate=self._prompt_rate(split, way),
            decode_rate=decode_rate,
            ttft_seconds=shortest.total / max(chunks)
            + split.slowest * (1 - 1 / min(chunks))
            + way.hops(1),
            tpot_seconds=step.seconds,
        )

    def tries_all_orders(self, members: Sequence[int]) -> bool:
        """Whether no order of the stages, where that matters, is left out."""
        return not self._has_ways or len(members) <= MAX_ORDERED_DEVICES

    def tries_all_splits(self, members: Sequence[int]) -> bool:
        """Whether `most` holds; a larger group of unequal blocks may have better splits."""
        is_line = self._lines is not None and self._pinned.isdisjoint(members)
        return is_line or len(members) <= MAX_SUBSET_DEVICES

    # --- one split ------------------------------------------------------------------------

    def _split(self, members: Sequence[int], pace: Pace) -> Split | None:
        return self._stages(members).best_split(members, None, self._context_tokens, pace)

    def _stages(self, members: Sequence[int]) -> AnyStages | LinearStages:
        """Return the fastest way to split a group."""
        is_pinned = not self._pinned.isdisjoint(members)
        return self._any_stages if self._lines is None or is_pinned else self._lines

    def _way(self, members: Sequence[int]) -> _Way:
        stages = self._stages(members)
        if self._has_ways:
            return _Way(stages, lambda rows: 0.0, 0.0)
        hops = self._promises.hops(members)
        return _Way(stages, hops.of, self._promises.link_seconds(members, 1))

    def _without_order(self, members: Sequence[int]) -> _Way:
        if self._without_ways is None:
            bare = [replace(cost, peers={}) for cost in self._costs]
            is_line = LinearStages.describes(bare, self._model) and not self._pinned
            self._without_ways = (
                LinearStages(bare, self._model)
                if is_line
                else AnyStages(bare, self._model, self._context_tokens)
            )
        costs = [self._costs[d] for d in members]

        def least(rows: int) -> float:
            return sum(
                min(hop_seconds(one, other, rows) for other in costs if other is not one)
                for one in costs
            )

        return _Way(self._without_ways, least, 0.0)

    def _prompt_rate(self, split: Split, way: _Way) -> float:
        tokens = self._workload.prompt_tokens
        return tokens / max(split.slowest, tokens * way.link_seconds, 1e-9)

    def _promised(self, members: Sequence[int], split: Split) -> Performance:
        devices = [members[i] for i in split.order]
        return self._promises.performance(devices, split.counts, split.offloads)

    # --- decode ---------------------------------------------------------------------------

    def _decode(self, members: Sequence[int], way: _Way) -> _Fastest:
        promises = self._promises
        slots = self._objective.max_slots
        found = self._fastest(members, promises.step_seconds, slots, way)
        if found.split is None and promises.step_seconds < promises.loose_seconds:
            # As `Promises` has it: a target that nobody keeps does not limit anybody.
            found = self._fastest(members, promises.loose_seconds, slots, way)
        if found.split is None:
            # So slow that even one request misses what it should get.
            found = self._fastest(members, inf, 1, way)
        return found

    def _fastest(self, members: Sequence[int], limit: float, max_slots: int, way: _Way) -> _Fastest:
        """Return the split for the most tokens per second with no step over ``limit``."""
        best, enough, least = None, inf, inf
        for slots in range(max_slots, 0, -1):
            split = self._step(members, slots, min(limit, slots * least), way)
            if split is None:
                continue
            least = min(least, split.seconds / slots)
            if best is None or split.seconds <= slots * enough * (1 + EPSILON):
                best, enough = split, split.seconds / slots / FEWER_SLOTS_GAIN
        return _Fastest(best, least)

    def _step(self, members: Sequence[int], slots: int, limit: float, way: _Way) -> Split | None:
        """Return the split with the fastest decode step of ``slots`` requests, if any."""
        kv_tokens = max(self._context_tokens, slots * self._promises.request_tokens)
        best: Split | None = None
        for groups, rows in groupings(slots, len(members)):
            pace = Pace(laps=groups, weight=1.0, extra_seconds=way.hops(rows))
            bound = limit if best is None else min(limit, best.seconds)
            link_seconds = groups * rows * way.link_seconds
            if link_seconds > bound * (1 + EPSILON):
                continue
            split = way.stages.best_split(members, rows, kv_tokens, pace, bound)
            if split is not None:
                split = split._replace(seconds=max(split.seconds, link_seconds))
                best = split if split.is_better_than(best) else best
        return best

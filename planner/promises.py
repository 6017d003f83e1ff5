"""What a given split of the layers promises in both phases. Pure.

The formulas behind `planner.performance.Performance`: pipelines of prompts, steps of decode
groups, room for KV cache, links, targets and power. Which split is best is not asked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise
from math import ceil, inf
from typing import Final, NamedTuple

from broker.placement import KV_BLOCK_TOKENS, kv_reserved_tokens
from planner.cost import DeviceCost, PhaseCost, hop_seconds, link_seconds
from planner.model import ModelSpec, Objective, Workload
from planner.performance import Energy, Performance

FEWER_SLOTS_GAIN: Final = 1.001
"""Fewer requests at once have to be faster by this: more of them wait less for a slot."""
_ROUNDING: Final = 1e-9


class _Stage(NamedTuple):
    cost: DeviceCost
    start: int
    end: int
    offloads: int

    def seconds(self, phase: PhaseCost) -> float:
        return phase.stage_seconds(self.start, self.end, self.offloads)

    def decode_seconds(self, rows: int) -> float:
        return self.seconds(self.cost.decode[rows - 1])


class Hops(NamedTuple):
    """Seconds of a ring's hops with one row, and with two; more rows go on along a line."""

    one_row: float
    two_rows: float

    def of(self, rows: int) -> float:
        """Return the hops of a group of so many rows."""
        return self.one_row + (rows - 1) * (self.two_rows - self.one_row)


class _Ring:
    """The stages of a replica; steps of the same rows are asked for again and again."""

    def __init__(self, stages: Sequence[_Stage], hops: Hops) -> None:
        self.stages = stages
        self.hops = hops
        self.link = _busiest_link([stage.cost for stage in stages])
        self._times: dict[int, tuple[float, float]] = {}

    def times(self, rows: int) -> tuple[float, float]:
        """Return one group's way round, and the slowest of its stages and links."""
        found = self._times.get(rows)
        if found is None:
            stages = [stage.decode_seconds(rows) for stage in self.stages]
            found = self._times[rows] = (
                sum(stages) + self.hops.of(rows),
                max(*stages, self.link * rows),
            )
        return found


class _Step(NamedTuple):
    """A decode step of some slots, the best over the numbers of groups in flight."""

    seconds: float
    groups: int
    rows: int


class Promises:
    """Predictions for splits over the devices of one fog."""

    def __init__(
        self,
        costs: Sequence[DeviceCost],
        model: ModelSpec,
        workload: Workload,
        objective: Objective,
    ) -> None:
        self._costs = costs
        self._model = model
        self._workload = workload
        self._objective = objective
        self._prompts = workload.prompt_shares
        self.prompt_tokens = ceil(
            sum(share * kv_reserved_tokens(length) for length, share in self._prompts) - _ROUNDING
        )
        self.request_tokens = ceil(
            sum(
                share * kv_reserved_tokens(bucket.prompt_tokens + bucket.answer_tokens)
                for bucket, share in workload.step_shares
            )
            - _ROUNDING
        )
        self.context_tokens = kv_reserved_tokens(workload.context_tokens)
        self.loose_seconds = 1 / workload.min_tps
        self.step_seconds = min(self.loose_seconds, objective.tpot_seconds or inf)

    def performance(
        self, devices: Sequence[int], counts: Sequence[int], offloads: Sequence[int] = ()
    ) -> Performance:
        """Return what a split promises; `planner.replicas.Fog.performance` says more."""
        work = self._workload
        ends = list(accumulate(counts))
        offloads = tuple(offloads) or (0,) * len(counts)
        stages = [
            _Stage(self._costs[d], end - count, end, moved)
            for d, count, end, moved in zip(devices, counts, ends, offloads, strict=True)
        ]
        room = min(self._room_tokens(stage) for stage in stages)
        hops = self.hops(devices)

        link = self.link_seconds(devices, work.prompt_tokens)
        slowest = max(*[stage.seconds(stage.cost.prefill) for stage in stages], link)
        ttfts = self._ttfts(stages, hops.one_row, self.link_seconds(devices, 1), devices)
        ttft = sum([share * one for (_, share), one in zip(self._prompts, ttfts, strict=True)])
        prompts = min(max(room // self.prompt_tokens, 1), len(devices) + 1)
        prefill_rate = work.prompt_tokens * min(1 / max(slowest, 1e-9), prompts / max(ttft, 1e-9))

        ring = _Ring(stages, hops)
        alone = self._step(ring, 1).seconds
        slots, step = self._fastest(ring, room, alone)
        # More than this is never used, and a node need not keep it. It depends on the split
        # alone, so that a change of speed does not change what the nodes hold.
        useful = (self._objective.max_slots + len(devices) + 1) * self.context_tokens
        target = self._objective.ttft_seconds
        return Performance(
            devices=tuple(devices),
            counts=tuple(counts),
            prefill_rate=prefill_rate,
            decode_rate=slots / max(step.seconds, 1e-9),
            slots=slots,
            keeps_min_tps=alone * work.min_tps <= 1 + _ROUNDING,
            kv_tokens=min(room, useful) // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS,
            ttft_seconds=ttft,
            tpot_seconds=alone,
            offloads=offloads,
            send_seconds=self._link_out_seconds(stages),
            receive_seconds=self._link_in_seconds(stages),
            in_time=()
            if target is None
            else tuple([one <= target * (1 + _ROUNDING) for one in ttfts]),
            keeps_tpot=step.seconds <= (self._objective.tpot_seconds or inf) * (1 + _ROUNDING),
            energy=_energy(stages, step, slots),
        )

    def _ttfts(
        self, stages: Sequence[_Stage], hops: float, row_seconds: float, devices: Sequence[int]
    ) -> list[float]:
        """Return the prefill of a lone prompt of each of `Workload.prompt_shares`.

        Stages overlap within one prompt, chunk by chunk; the slowest sets the pace. Hidden
        states go from stage to stage, not round the ring: the first gets ids, the last one
        sends a token.
        """
        costs = [self._costs[d] for d in devices]
        way_row_seconds = sum(
            hop_seconds(one, other, 2) - hop_seconds(one, other) for one, other in pairwise(costs)
        )
        found = []
        for index, (length, _) in enumerate(self._prompts):
            chunks = ceil(length / self._workload.chunk_tokens)
            link = length * row_seconds
            seconds = [stage.seconds(stage.cost.prompts[index]) for stage in stages]
            slowest = max(*seconds, link)
            way = hops + max(length / chunks - 1, 0.0) * way_row_seconds
            found.append((sum(seconds) + (chunks - 1) * slowest) / chunks + way)
        return found

    def _room_tokens(self, stage: _Stage) -> int:
        """Return the KV positions for which a stage has room beside its weights."""
        model, layers = self._model, slice(stage.start, stage.end)
        room = stage.cost.memory_bytes - model.stage_bytes(stage.start, stage.end)
        room += sum(model.ffn_bytes[stage.start : stage.start + stage.offloads])
        return room // max(sum(model.kv_bytes[layers]), 1)

    # --- decode -----------------------------------------------------------------------------

    def _fastest(self, ring: _Ring, room: int, alone: float) -> tuple[int, _Step]:
        """Return the slots with the most tokens per second whose step is short enough.

        At least one. A TPOT target that not even one request keeps (``alone``) would leave
        the replica nearly unused and still be missed, so then ``min_tps`` alone counts.
        """
        limit = self.step_seconds
        if alone > limit * (1 + _ROUNDING):
            limit = self.loose_seconds
        best, fastest, rate = 1, self._step(ring, 1), 0.0
        for slots in range(min(self._objective.max_slots, room // self.request_tokens), 0, -1):
            step = self._step(ring, slots)
            if step.seconds <= limit * (1 + _ROUNDING) and slots > rate * step.seconds:
                best, fastest, rate = slots, step, FEWER_SLOTS_GAIN * slots / step.seconds
        return best, fastest

    def _step(self, ring: _Ring, slots: int) -> _Step:
        """Return the shortest decode step over the numbers of groups in flight.

        As `broker.grouping.best_grouping`, and each link must carry every group as well.
        """
        best = _Step(inf, 1, slots)
        for groups, rows in groupings(slots, len(ring.stages)):
            way, slowest = ring.times(rows)
            best = min(best, _Step(max(way, groups * slowest), groups, rows))
        return best

    # --- links ------------------------------------------------------------------------------

    def hops(self, devices: Sequence[int]) -> Hops:
        """Return all hops of the ring. Over the broker the order does not matter."""
        return Hops(self._hop_seconds(devices, 1), self._hop_seconds(devices, 2))

    def _hop_seconds(self, devices: Sequence[int], rows: int) -> float:
        if len(devices) == 1:
            return 0.0
        costs = [self._costs[d] for d in devices]
        return sum([hop_seconds(costs[i - 1], cost, rows) for i, cost in enumerate(costs)])

    def link_seconds(self, devices: Sequence[int], rows: int) -> float:
        """Return how long the slowest link of a ring carries ``rows`` positions."""
        return rows * _busiest_link([self._costs[d] for d in devices])

    def _link_out_seconds(self, stages: Sequence[_Stage]) -> float:
        """Return the busiest uplink's time for a prompt whose KV cache leaves.

        The last stage has no hidden states to pass on.
        """
        tokens = self._workload.prompt_tokens
        return max(
            self._kv_seconds(stage, tokens) + (tokens * stage.cost.row_seconds if more else 0.0)
            for stage, more in zip(stages, (*(True,) * (len(stages) - 1), False), strict=True)
        )

    def _link_in_seconds(self, stages: Sequence[_Stage]) -> float:
        """Return the busiest downlink's time for a request whose KV cache arrives.

        The first stage gets the ids of tokens, which are next to nothing.
        """
        work = self._workload
        return max(
            self._kv_seconds(stage, work.prompt_tokens)
            + (work.answer_tokens * stage.cost.row_seconds if index else 0.0)
            for index, stage in enumerate(stages)
        )

    def _kv_seconds(self, stage: _Stage, num_tokens: int) -> float:
        kv_bytes = num_tokens * sum(self._model.sent_kv_bytes[stage.start : stage.end])
        return kv_bytes / stage.cost.bytes_per_second


def _energy(stages: Sequence[_Stage], step: _Step, slots: int) -> Energy | None:
    idle = prompt = token = 0.0
    for stage in stages:
        power = stage.cost.power
        if power is None:
            return None
        idle += power.idle_watts
        prompt += power.extra_watts * stage.seconds(stage.cost.prefill)
        token += power.extra_watts * stage.decode_seconds(step.rows) * step.groups / slots
    return Energy(idle, prompt, token)


def _busiest_link(costs: Sequence[DeviceCost]) -> float:
    """Return the seconds per position of the slowest link of a ring."""
    if len(costs) == 1:
        return 0.0
    return max(link_seconds(costs[i - 1], cost) for i, cost in enumerate(costs))


@cache
def groupings(slots: int, num_stages: int) -> tuple[tuple[int, int], ...]:
    """Return (groups, rows of the largest) worth trying: of equal rows the fewest groups."""
    fewest: dict[int, int] = {}
    for groups in range(1, min(slots, 2 * num_stages) + 1):
        fewest.setdefault(ceil(slots / groups), groups)
    return tuple((groups, rows) for rows, groups in fewest.items())

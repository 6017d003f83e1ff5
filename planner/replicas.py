"""What a group of devices is worth as one replica, in each role. Pure.

For every group the best split is found for prefill and for decode, the latter together with
the largest number of requests at once that keeps the workload's ``min_tps``. Groups are
evaluated once and remembered, because the search meets them again and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from math import ceil, inf
from typing import NamedTuple

from broker.placement import KV_BLOCK_TOKENS, kv_reserved_tokens
from planner.cost import DeviceCost, device_cost, hop_seconds, link_seconds
from planner.linear_stages import LinearStages
from planner.masks import members_of
from planner.model import DeviceSpec, ModelSpec, Objective, Workload
from planner.partition import best_split
from planner.split import Offload, Pace, Split, SplitProblem


@dataclass(frozen=True, slots=True)
class Performance:
    """What a split promises.

    Attributes:
        devices: Device indexes in stage order.
        counts: Layers of each stage.
        prefill_rate: Prompt tokens per second with the pipeline full (PS in the paper).
        decode_rate: Tokens per second of all slots together (DS).
        slots: Requests decoded at once, the most that keep ``min_tps``; at least 1.
        keeps_min_tps: Whether even one request at a time gets ``min_tps``.
        kv_tokens: KV positions that every stage can hold.
        ttft_seconds: Prefill of one prompt of the planned length on the idle replica.
        tpot_seconds: Time between two tokens of a lone request.
        offloads: Layers of each stage with their feed-forward part in host memory.
    """

    devices: tuple[int, ...]
    counts: tuple[int, ...]
    prefill_rate: float
    decode_rate: float
    slots: int
    keeps_min_tps: bool
    kv_tokens: int
    ttft_seconds: float
    tpot_seconds: float
    offloads: tuple[int, ...] = ()

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """Devices, layers and layers in host memory: equal for equal stages."""
        return self.devices, self.counts, self.offloads

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Half-open layer range of each stage."""
        ends = list(accumulate(self.counts))
        return list(zip([0, *ends[:-1]], ends, strict=True))


@dataclass(frozen=True, slots=True)
class Options:
    """The best splits of one group, one for each role."""

    prefill: Performance
    decode: Performance
    both: Performance

    def exchanged(self, others: Mapping[int, int]) -> Options:
        """Return the same of other devices that are equal to these."""

        def of(found: Performance) -> Performance:
            return replace(found, devices=tuple([others[d] for d in found.devices]))

        return Options(of(self.prefill), of(self.decode), of(self.both))


class _StageCost(NamedTuple):
    cost: DeviceCost
    start: int
    end: int
    offloads: int

    def prefill_seconds(self) -> float:
        return self.cost.prefill.stage_seconds(self.start, self.end, self.offloads)

    def decode_seconds(self, rows: int) -> float:
        return self.cost.decode[rows - 1].stage_seconds(self.start, self.end, self.offloads)


class Fog:
    """Devices, model, workload and objective, with everything that is remembered of them.

    Groups of devices are bit masks over the devices in the order of their ids.
    """

    def __init__(
        self,
        devices: Sequence[DeviceSpec],
        model: ModelSpec,
        workload: Workload,
        objective: Objective,
    ) -> None:
        ids = [device.id for device in devices]
        if len(set(ids)) != len(ids):
            twice = sorted({name for name in ids if ids.count(name) > 1})
            raise ValueError(f"device ids must be different; more than once: {', '.join(twice)}")
        self.model = model
        self.workload = workload.fitted_to(model.context_limit)
        self.objective = objective
        self.costs: tuple[DeviceCost, ...] = tuple(
            device_cost(device, model, self.workload, objective.max_slots)
            for device in sorted(devices, key=lambda device: device.id)
        )
        self._has_ways = any(cost.peers for cost in self.costs)
        self._lines = (
            LinearStages(self.costs, model) if LinearStages.describes(self.costs, model) else None
        )
        self._options: dict[int, Options | None] = {}
        # Equal devices are exchanged, not evaluated again.
        known: dict[tuple[object, ...], int] = {}
        kinds = [_kind(cost, self._has_ways) for cost in self.costs]
        self._kinds = [known.setdefault(kind, len(known)) for kind in kinds]
        self._twins: dict[tuple[int, ...], tuple[list[int], Options | None]] = {}

    @property
    def num_devices(self) -> int:
        """Devices, usable or not."""
        return len(self.costs)

    @property
    def request_tokens(self) -> int:
        """KV positions that one mean request reserves."""
        return kv_reserved_tokens(self.workload.prompt_tokens + self.workload.answer_tokens)

    @property
    def context_tokens(self) -> int:
        """KV positions of the longest request; a replica holds at least these."""
        return kv_reserved_tokens(self.workload.context_tokens)

    def options(self, group: int) -> Options | None:
        """Return what a group (a bit mask) is worth; None when the model does not fit in it."""
        if group not in self._options:
            members = members_of(group)
            members.sort(key=self._kinds.__getitem__)
            kinds = tuple([self._kinds[d] for d in members])
            if kinds not in self._twins:
                self._twins[kinds] = members, self._evaluate(members)
            twins, options = self._twins[kinds]
            if options is not None and twins is not members:
                options = options.exchanged(dict(zip(twins, members, strict=True)))
            self._options[group] = options
        return self._options[group]

    def _evaluate(self, members: Sequence[int]) -> Options | None:
        if not members or len(members) > self.model.num_layers:
            return None
        memory = sum(self.costs[d].memory_bytes + self.costs[d].host_memory_bytes for d in members)
        if memory < self.model.stage_bytes(0, self.model.num_layers, self.context_tokens):
            return None
        prefill = self._best_prefill(members)
        if prefill is None:
            return None
        decode = self._best_decode(members)
        if prefill.stages == decode.stages:
            return Options(prefill, prefill, prefill)
        return Options(prefill, decode, min(decode, prefill, key=self.both_seconds))

    def both_seconds(self, performance: Performance) -> float:
        """Return seconds per request when prefill and decode take turns on one replica."""
        work = self.workload
        return (
            work.prompt_tokens / performance.prefill_rate
            + work.answer_tokens / performance.decode_rate
        )

    # --- splits ---------------------------------------------------------------------------

    def _problem(self, members: Sequence[int], kv_tokens: int, rows: int | None) -> SplitProblem:
        """Return the group's problem: prefill when ``rows`` is None, else one decode step."""
        model = self.model
        costs = [self.costs[d] for d in members]
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
            hop_seconds=[[hop_seconds(a, b) for b in costs] for a in costs]
            if self._has_ways
            else (),
        )

    def _split(
        self,
        members: Sequence[int],
        kv_tokens: int,
        rows: int | None,
        pace: Pace,
        limit: float = inf,
        any_will_do: bool = False,
    ) -> Split | None:
        """Return the best split of the group's problem, the fastest way there is."""
        if self._lines is not None:
            return self._lines.best_split(members, rows, kv_tokens, pace, limit, any_will_do)
        return best_split(self._problem(members, kv_tokens, rows), pace, limit, any_will_do)

    def _best_prefill(self, members: Sequence[int]) -> Performance | None:
        """Balance the stages for prompts; room for more prompts at once may cost balance."""
        prompt = kv_reserved_tokens(self.workload.prompt_tokens)
        best: Performance | None = None
        tried: set[int] = set()
        for prompts in range(len(members) + 1, 0, -1):
            kv_tokens = max(self.context_tokens, prompts * prompt)
            if kv_tokens in tried:
                continue
            tried.add(kv_tokens)
            split = self._split(members, kv_tokens, None, Pace())
            if split is None:
                continue
            found = self._promised(members, split)
            if best is None or found.prefill_rate > best.prefill_rate * (1 + 1e-9):
                best = found
        return best

    def _best_decode(self, members: Sequence[int]) -> Performance:
        """Find the largest number of slots, by bisection, and the fastest step with it.

        More slots need more memory and longer steps, so what fails for some number fails
        for every larger one.
        """
        limit = 1 / self.workload.min_tps
        low, high = 0, self.objective.max_slots
        # Where streams are fast, only the cap stops them: that number is tried first.
        slots = high
        while low < high:
            if self._best_step(members, slots, limit, any_will_do=True) is not None:
                low = slots
            else:
                high = slots - 1
            slots = (low + high + 1) // 2
        split = self._best_step(members, max(low, 1), inf)
        assert split is not None, "a group that holds one request has a split"
        return self._promised(members, split)

    def _promised(self, members: Sequence[int], split: Split) -> Performance:
        devices = [members[i] for i in split.order]
        return self.performance(devices, split.counts, split.offloads)

    def _best_step(
        self, members: Sequence[int], slots: int, limit: float, any_will_do: bool = False
    ) -> Split | None:
        """Return the split with the fastest decode step of ``slots`` requests, if any."""
        kv_tokens = max(self.context_tokens, slots * self.request_tokens)
        # Where the order matters, the problem knows the hops.
        hops = 0.0 if self._has_ways else self._hop_seconds(members)
        link = 0.0 if self._has_ways else self._link_seconds(members, 1)
        best: Split | None = None
        for groups, rows in groupings(slots, len(members)):
            pace = Pace(laps=groups, weight=1.0, extra_seconds=hops)
            bound = limit if best is None else min(limit, best.seconds)
            if groups * rows * link > bound:
                continue
            split = self._split(members, kv_tokens, rows, pace, bound, any_will_do)
            if split is not None and any_will_do:
                return split
            if split is not None and split.is_better_than(best):
                best = split
        return best

    # --- promises -------------------------------------------------------------------------

    def performance(
        self, devices: Sequence[int], counts: Sequence[int], offloads: Sequence[int] = ()
    ) -> Performance:
        """Return what a given split promises, in both phases.

        Without ``offloads`` everything is in the devices' own memory.
        """
        work = self.workload
        ends = list(accumulate(counts))
        offloads = tuple(offloads) or (0,) * len(counts)
        stages = [
            _StageCost(self.costs[d], end - count, end, moved)
            for d, count, end, moved in zip(devices, counts, ends, offloads, strict=True)
        ]
        room = min(self._room_tokens(stage) for stage in stages)
        hops = self._hop_seconds(devices)

        prompt_seconds = [stage.prefill_seconds() for stage in stages]
        slowest = max(*prompt_seconds, self._link_seconds(devices, work.prompt_tokens))
        chunks = ceil(work.prompt_tokens / work.chunk_tokens)
        # Stages overlap within one prompt, chunk by chunk; the slowest sets the pace.
        way = hops + len(devices) * self._link_seconds(devices, work.prompt_tokens) / chunks
        ttft = (sum(prompt_seconds) + (chunks - 1) * slowest) / chunks + way
        prompts = max(room // kv_reserved_tokens(work.prompt_tokens), 1)
        prompts = min(prompts, len(devices) + 1)
        prefill_rate = work.prompt_tokens * min(1 / max(slowest, 1e-9), prompts / max(ttft, 1e-9))

        most = max(min(self.objective.max_slots, room // self.request_tokens), 1)
        low, high = 1, most
        while low < high:
            slots = (low + high + 1) // 2
            if self._step_seconds(stages, hops, slots) * work.min_tps <= 1 + 1e-9:
                low = slots
            else:
                high = slots - 1
        step = self._step_seconds(stages, hops, low)
        alone = self._step_seconds(stages, hops, 1)
        # More than this is never used, and a node need not keep it. It depends on the split
        # alone, so that a change of speed does not change what the nodes hold.
        useful = (self.objective.max_slots + len(devices) + 1) * self.context_tokens
        return Performance(
            devices=tuple(devices),
            counts=tuple(counts),
            prefill_rate=prefill_rate,
            decode_rate=low / max(step, 1e-9),
            slots=low,
            keeps_min_tps=alone * work.min_tps <= 1 + 1e-9,
            kv_tokens=min(room, useful) // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS,
            ttft_seconds=ttft,
            tpot_seconds=alone,
            offloads=offloads,
        )

    def _room_tokens(self, stage: _StageCost) -> int:
        """Return the KV positions for which a stage has room beside its weights."""
        model, layers = self.model, slice(stage.start, stage.end)
        room = stage.cost.memory_bytes - model.stage_bytes(stage.start, stage.end)
        room += sum(model.ffn_bytes[stage.start : stage.start + stage.offloads])
        return room // max(sum(model.kv_bytes[layers]), 1)

    def _step_seconds(self, stages: Sequence[_StageCost], hops: float, slots: int) -> float:
        """Return the shortest decode step over the numbers of groups in flight.

        As `broker.grouping.best_grouping`, and each link must carry every group as well.
        """
        best = inf
        busiest = _busiest_link([stage.cost for stage in stages])
        for groups, rows in groupings(slots, len(stages)):
            times = [stage.decode_seconds(rows) for stage in stages]
            link = busiest * rows
            best = min(best, max(sum(times) + hops, groups * max(*times, link)))
        return best

    def _hop_seconds(self, devices: Sequence[int]) -> float:
        """Return all hops of the ring. Over the broker the order does not matter."""
        if len(devices) == 1:
            return 0.0
        costs = [self.costs[d] for d in devices]
        return sum(hop_seconds(costs[i - 1], cost) for i, cost in enumerate(costs))

    def _link_seconds(self, devices: Sequence[int], rows: int) -> float:
        """Return how long the slowest link of a ring carries ``rows`` positions."""
        return rows * _busiest_link([self.costs[d] for d in devices])


def _kind(cost: DeviceCost, has_ways: bool) -> tuple[object, ...]:
    """Return what two devices have in common that can stand for each other."""
    if has_ways:
        return (cost.id,)
    return tuple(
        getattr(cost, field.name) for field in fields(cost) if field.name not in ("id", "peers")
    )


def _busiest_link(costs: Sequence[DeviceCost]) -> float:
    """Return the seconds per position of the slowest link of a ring."""
    if len(costs) == 1:
        return 0.0
    return max(link_seconds(costs[i - 1], cost) for i, cost in enumerate(costs))


def groupings(slots: int, num_stages: int) -> list[tuple[int, int]]:
    """Return (groups, rows of the largest) worth trying: of equal rows the fewest groups."""
    fewest: dict[int, int] = {}
    for groups in range(1, min(slots, 2 * num_stages) + 1):
        fewest.setdefault(ceil(slots / groups), groups)
    return [(groups, rows) for rows, groups in fewest.items()]

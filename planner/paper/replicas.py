"""What a group of devices is worth as a replica by the paper's formulas. Pure.

The same splits (`planner.splits.partition`), genetic algorithm, oracle and choice of roles as in
production work on it; what differs from `planner.replicas` is the paper's convention:

- one device of a replica is the master and has embedding and head, any may be it;
- a replica of M devices passes micro-batches of ceil(b / M) rows, and a request's next token
  takes M times the slowest stage; the way into a stage counts as part of the stage;
- feed-forward parts that do not fit go to host memory, own memory being filled first;
- KV cache takes no memory, KV transfer no time;
- the prefill speed of a replica has more than one `Reading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from math import ceil
from typing import Final

from planner.cost import DeviceCost, device_cost, hop_seconds
from planner.model import DeviceSpec, ModelSpec, Objective, Workload
from planner.paper.calibration import MAX_SLOTS
from planner.performance import Options, Performance
from planner.splits.partition import best_split
from planner.splits.split import Ends, Offload, Pace, Split, SplitProblem

_ROUNDING: Final = 1e-9


class Reading(StrEnum):
    """What is the prefill speed (PS) of a replica of several devices.

    The paper evaluates prefill "once, with one request", and prints it per request; its
    theory of pipelines would allow the rate of a full one. For a single device all are equal.
    """

    ONE_REQUEST = "one request"
    """A prompt alone in the pipeline; that of a decode replica over its layers as they are
    split for decode. The default: with it the published plans come out."""
    PIPELINED = "pipelined"
    """Prompts back to back: the slowest stage or link sets the rate."""
    SEPARATE_SPLIT = "separate split"
    """A prompt alone; that of a decode replica over its layers as split for prefill."""


@dataclass(frozen=True, slots=True)
class StageTimes:
    """One stage of a replica in numbers.

    Attributes:
        num_blocks: Blocks on the device.
        offloads: Of these how many have their FFN in host memory.
        prefill_seconds: A prompt of the planned length.
        decode_seconds: [16], a step of 1 to 16 rows, with the way into the stage.
    """

    device: str
    num_blocks: int
    offloads: int
    prefill_seconds: float
    decode_seconds: tuple[float, ...]


class PaperFog:
    """The paper's problem: a `planner.groupings.search.GroupTable`.

    Groups of devices are bit masks over the devices in the order of their ids.
    """

    def __init__(
        self,
        devices: Sequence[DeviceSpec],
        model: ModelSpec,
        workload: Workload,
        reading: Reading = Reading.ONE_REQUEST,
        objective: Objective | None = None,
    ) -> None:
        self.model = model
        self.workload = workload
        self.reading = reading
        self.objective = objective or Objective(max_slots=MAX_SLOTS)
        self.costs: tuple[DeviceCost, ...] = tuple(
            device_cost(device, model, workload, self.objective.max_slots)
            for device in sorted(devices, key=lambda device: device.id)
        )
        self._options: dict[int, Options | None] = {}

    @property
    def num_devices(self) -> int:
        """Devices, usable or not."""
        return len(self.costs)

    @property
    def terms(self) -> None:
        """None: the objective is the paper's and nothing else."""
        return None

    def group(self, devices: Sequence[str]) -> int:
        """Return the bit mask of a group."""
        return sum(1 << i for i, cost in enumerate(self.costs) if cost.id in devices)

    def index(self, device: str) -> int:
        """Return a device's place in the order of ids; `StopIteration` if there is none."""
        return next(i for i, cost in enumerate(self.costs) if cost.id == device)

    def options(self, group: int) -> Options | None:
        """Return what a group is worth; None when the model does not fit in it."""
        if group not in self._options:
            self._options[group] = self._evaluate(group)
        return self._options[group]

    def _evaluate(self, group: int) -> Options | None:
        members = self._members(group)
        split = best_split(self._problem(members, None), Pace())
        if split is None:
            return None
        prefill = self._promised(members, split)
        decode = self._best_decode(members)
        return Options(prefill, decode, decode)

    def _best_decode(self, members: Sequence[int]) -> Performance:
        """Search the batch as the paper does: the largest in 1..16 that keeps the speed.

        Steps grow with their rows, so the first number of rows that is too slow ends it.
        """
        chosen: Split | None = None
        for rows in range(1, ceil(self.objective.max_slots / len(members)) + 1):
            split = self._step(members, rows)
            if chosen is not None and not self._keeps_speed(split.seconds):
                break
            chosen = split
        assert chosen is not None
        return self._promised(members, chosen)

    def best_step_seconds(self, group: int, rows: int) -> float:
        """Return the shortest step of a group that holds the model, with ``rows`` per stage."""
        return self._step(self._members(group), rows).seconds

    def _members(self, group: int) -> list[int]:
        return [d for d in range(self.num_devices) if group >> d & 1]

    def _step(self, members: Sequence[int], rows: int) -> Split:
        split = best_split(self._problem(members, rows), Pace(laps=len(members)))
        assert split is not None, "what holds a prompt's stages holds a step's"
        return split

    def _promised(self, members: Sequence[int], split: Split) -> Performance:
        devices = [members[i] for i in split.order]
        return self.performance(devices, split.counts, split.offloads)

    def _problem(self, members: Sequence[int], rows: int | None) -> SplitProblem:
        """Return the group's problem: prefill when ``rows`` is None, else one decode step."""
        model = self.model
        costs = [self.costs[d] for d in members]
        phases = [cost.prefill if rows is None else cost.decode[rows - 1] for cost in costs]
        none = (0.0,) * model.num_layers
        return SplitProblem(
            layer_seconds=[phase.layers for phase in phases],
            first_seconds=[phase.embedding for phase in phases],
            last_seconds=[phase.head for phase in phases],
            layer_bytes=model.block_bytes,
            first_bytes=model.embedding_bytes,
            last_bytes=model.head_bytes,
            shared_bytes=model.shared_bytes,
            memory_bytes=[cost.memory_bytes for cost in costs],
            ends=Ends.MASTER,
            stage_seconds=[] if rows is None else [_way_in(cost, costs, rows) for cost in costs],
            offload=Offload(
                layer_bytes=model.ffn_bytes,
                extra_seconds=[phase.offload_extra or none for phase in phases],
                host_bytes=[cost.host_memory_bytes for cost in costs],
            ),
        )

    # --- promises -------------------------------------------------------------------------

    def stages(
        self, devices: Sequence[int], counts: Sequence[int], offloads: Sequence[int]
    ) -> tuple[StageTimes, ...]:
        """Return the times of a split's stages, the master first."""
        costs = [self.costs[d] for d in devices]
        found = []
        for index, (end, cost) in enumerate(zip(accumulate(counts), costs, strict=True)):
            start, moved = end - counts[index], offloads[index]
            phases = [cost.prefill, *cost.decode]
            seconds = [
                sum(phase.layers[start:end])
                + sum(phase.offload_extra[start : start + moved])
                + (phase.embedding + phase.head if index == 0 else 0.0)
                for phase in phases
            ]
            steps = (
                step + _way_in(cost, costs, rows) for rows, step in enumerate(seconds[1:], start=1)
            )
            found.append(StageTimes(cost.id, end - start, moved, seconds[0], tuple(steps)))
        return tuple(found)

    def performance(
        self, devices: Sequence[int], counts: Sequence[int], offloads: Sequence[int]
    ) -> Performance:
        """Return what a split promises: PS, DS, N_Req; latencies are of a lone request."""
        work, stages = self.workload, self.stages(devices, counts, offloads)
        prompts = [stage.prefill_seconds for stage in stages]
        link = 0.0
        if len(stages) > 1:
            link = work.prompt_tokens * max(self.costs[d].row_seconds for d in devices)
        alone = sum(prompts) + (len(stages) - 1) * link
        full = max(*prompts, link) if self.reading is Reading.PIPELINED else alone
        slots, step = 1, step_seconds(stages, 1)
        keeps = self._keeps_speed(step)
        for more in range(2, self.objective.max_slots + 1):
            seconds = step_seconds(stages, more)
            if not self._keeps_speed(seconds):
                break
            slots, step = more, seconds
        return Performance(
            devices=tuple(devices),
            counts=tuple(counts),
            prefill_rate=work.prompt_tokens / full,
            decode_rate=slots / step,
            slots=slots,
            keeps_min_tps=keeps,
            kv_tokens=0,
            ttft_seconds=alone,
            tpot_seconds=step_seconds(stages, 1),
            offloads=tuple(offloads),
        )

    def _keeps_speed(self, step: float) -> bool:
        return step * self.workload.min_tps <= 1 + _ROUNDING


def step_seconds(stages: Sequence[StageTimes], num_requests: int) -> float:
    """Return a request's time between two tokens: M times the slowest stage."""
    rows = ceil(num_requests / len(stages))
    return len(stages) * max(stage.decode_seconds[rows - 1] for stage in stages)


def _way_in(cost: DeviceCost, costs: Sequence[DeviceCost], rows: int) -> float:
    """Return the way of a micro-batch into a stage, the longest from any other of the group."""
    ways = (hop_seconds(other, cost, rows) for other in costs if other.id != cost.id)
    return max(ways, default=0.0)

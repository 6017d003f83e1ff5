"""What a group of devices is worth as one replica, in each role. Pure.

For every group the best split is found for prefill and for decode, the latter together with
the largest number of requests at once that keeps the workload's ``min_tps``. Groups are
evaluated once and remembered, because the search meets them again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from math import inf
from typing import Final

from broker.plan import Plan
from planner.cost import DeviceCost, device_cost
from planner.masks import members_of
from planner.model import DeviceSpec, ModelSpec, Objective, Workload
from planner.moves import Holdings
from planner.owner import roles_of
from planner.performance import Options, Performance
from planner.promises import FEWER_SLOTS_GAIN, NO_HOPS, Hops, Promises, groupings
from planner.splits.any_stages import AnyStages
from planner.splits.linear_stages import LinearStages
from planner.splits.split import Pace, Split
from planner.terms import Terms

# Less than this is rounding.
_WORTH: Final = 1e-9


class Fog:
    """Devices, model, workload and objective, with everything that is remembered of them.

    Groups of devices are bit masks over the devices in the order of their ids.

    Args:
        running: The plan whose weights the devices hold; None: nothing is loaded, or moves
            do not count.

    Attributes:
        kinds: [N], numbered from 0; devices of one kind can stand for each other.

    Raises:
        ValueError: Two devices have one id, a device lacks times of a kind of block, or energy
            counts and a device's power is unknown.
    """

    def __init__(
        self,
        devices: Sequence[DeviceSpec],
        model: ModelSpec,
        workload: Workload,
        objective: Objective,
        running: Plan | None = None,
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
        if objective.energy_weight and (dark := [c.id for c in self.costs if c.power is None]):
            raise ValueError(f"energy counts, and power is not known of: {', '.join(dark)}")
        self._promises = Promises(self.costs, model, self.workload, objective)
        holdings = None if running is None else Holdings.of(running, model)
        self.terms: Terms = Terms(self.costs, model, self.workload, objective, holdings)
        self._running = {} if running is None else self._splits_of(running)
        self._has_ways = any(cost.peers for cost in self.costs)
        self._any_stages = AnyStages(self.costs, model, self.context_tokens)
        self._lines = (
            LinearStages(self.costs, model) if LinearStages.describes(self.costs, model) else None
        )
        self._pinned = {d for d, cost in enumerate(self.costs) if cost.owner.layers is not None}
        self._options: dict[int, Options | None] = {}
        # Equal devices are exchanged, not evaluated again.
        known: dict[tuple[object, ...], int] = {}
        kinds = [_kind(cost, self._has_ways) for cost in self.costs]
        self.kinds = [known.setdefault(kind, len(known)) for kind in kinds]
        self._twins: dict[tuple[int, ...], tuple[list[int], Options | None]] = {}

    @property
    def num_devices(self) -> int:
        """Devices, usable or not."""
        return len(self.costs)

    @property
    def request_tokens(self) -> int:
        """KV positions that a request in decode reserves, mean over the slots."""
        return self._promises.request_tokens

    @property
    def context_tokens(self) -> int:
        """KV positions of the longest request; a replica holds at least these."""
        return self._promises.context_tokens

    def options(self, group: int) -> Options | None:
        """Return what a group (a bit mask) is worth; None when the model does not fit in it."""
        if group not in self._options:
            members = members_of(group)
            members.sort(key=self.kinds.__getitem__)
            kinds = tuple([self.kinds[d] for d in members])
            if kinds not in self._twins:
                self._twins[kinds] = members, self._evaluate(members)
            twins, options = self._twins[kinds]
            if options is not None and twins is not members:
                options = options.exchanged(dict(zip(twins, members, strict=True)))
            if options is not None and group in self._running:
                options = self._kept_or_new(options, self._running[group])
            self._options[group] = options
        return self._options[group]

    def evaluated(self) -> Iterator[tuple[tuple[int, ...], Options]]:
        """Yield every group that was asked for so far and holds the model, by its kinds."""
        for kinds, (_, options) in self._twins.items():
            if options is not None:
                yield kinds, options

    def _evaluate(self, members: Sequence[int]) -> Options | None:
        if not members or len(members) > self.model.num_layers:
            return None
        memory = sum(self.costs[d].memory_bytes + self.costs[d].host_memory_bytes for d in members)
        if memory < self.model.stage_bytes(0, self.model.num_layers, self.context_tokens):
            return None
        roles = roles_of(self.costs[d].owner for d in members)
        prefill = self._best_prefill(members) if roles else None
        if prefill is None:
            return None
        decode = self._best_decode(members)
        if prefill.stages == decode.stages:
            return Options(prefill, prefill, prefill, roles)
        return Options(prefill, decode, min(decode, prefill, key=self.both_seconds), roles)

    def _splits_of(self, running: Plan) -> dict[int, Performance]:
        """Return the running replicas that are still possible, by their groups."""
        index = {cost.id: device for device, cost in enumerate(self.costs)}
        found = {}
        for replica in running.replicas:
            if replica.num_layers != self.model.num_layers:
                continue
            if all(stage.device in index for stage in replica.stages):
                devices = [index[stage.device] for stage in replica.stages]
                split = self.performance(devices, [len(stage.layers) for stage in replica.stages])
                if self.can_serve(split):
                    found[sum(1 << device for device in devices)] = split
        return found

    def can_serve(self, split: Performance) -> bool:
        """Whether a split holds the longest request, and the owners of its devices allow it."""
        return split.kv_tokens >= self.context_tokens and all(
            self.costs[device].owner.allows(start, end, self.model.num_layers)
            for device, (start, end) in zip(split.devices, split.ranges, strict=True)
        )

    def _kept_or_new(self, options: Options, running: Performance) -> Options:
        """Return for each role the running split unless a new one repays its loading."""
        horizon = self.objective.horizon_seconds

        def best(new: Performance, seconds: Callable[[Performance], float]) -> Performance:
            loading = self.terms.replica_load_seconds(new) / horizon if horizon else 0.0
            return new if seconds(new) * (1 + loading) < seconds(running) else running

        if not running.keeps_min_tps and options.decode.keeps_min_tps:
            return options
        return Options(
            best(options.prefill, lambda found: 1 / found.prefill_rate),
            best(options.decode, lambda found: 1 / found.decode_rate),
            best(options.both, self.both_seconds),
            options.roles,
        )

    def both_seconds(self, performance: Performance) -> float:
        """Return seconds per request when prefill and decode take turns on one replica."""
        work = self.workload
        return (
            work.prompt_tokens / performance.prefill_rate
            + work.answer_tokens / performance.decode_rate
        )

    # --- splits ---------------------------------------------------------------------------

    def _split(
        self,
        members: Sequence[int],
        rows: int | None,
        kv_tokens: int,
        pace: Pace,
        limit: float = inf,
    ) -> Split | None:
        """Return the best split of a group, the fastest way there is."""
        is_pinned = not self._pinned.isdisjoint(members)
        stages = self._any_stages if self._lines is None or is_pinned else self._lines
        return stages.best_split(members, rows, kv_tokens, pace, limit)

    def _best_prefill(self, members: Sequence[int]) -> Performance | None:
        """Balance the stages for prompts; room for more prompts at once may cost balance."""
        prompt = self._promises.prompt_tokens
        # With room for one prompt stages balance best, and no pipeline is faster than its
        # slowest stage.
        split = self._split(members, None, self.context_tokens, Pace())
        if split is None:
            return None
        most_rate = self.workload.prompt_tokens / max(split.slowest, 1e-9)
        best = self._promised(members, split)
        rooms = {
            max(self.context_tokens, prompts * prompt) for prompts in range(2, len(members) + 2)
        }
        for kv_tokens in sorted(rooms - {self.context_tokens}, reverse=True):
            least = best.prefill_rate * (1 + _WORTH)
            if least >= most_rate:
                break
            split = self._split(
                members, None, kv_tokens, Pace(), self.workload.prompt_tokens / least
            )
            if split is not None:
                best = max(
                    best, self._promised(members, split), key=lambda found: found.prefill_rate
                )
        return best

    def _best_decode(self, members: Sequence[int]) -> Performance:
        """Find the number of slots, and the split, with the most tokens per second."""
        promises = self._promises
        split = self._fastest_decode(members, promises.step_seconds)
        if split is None and promises.step_seconds < promises.loose_seconds:
            # As `Promises` has it: a target that nobody keeps does not limit anybody.
            split = self._fastest_decode(members, promises.loose_seconds)
        if split is None:
            # So slow that even one request misses what it should get.
            split = self._fastest_decode(members, inf, max_slots=1)
        assert split is not None, "a group that holds one request has a split"
        return self._promised(members, split)

    def _fastest_decode(
        self, members: Sequence[int], limit: float, max_slots: int | None = None
    ) -> Split | None:
        """Return the split for the most tokens per second with no step over ``limit``."""
        best, token_seconds = None, inf
        # Where the order matters, the problem knows the hops.
        hops = NO_HOPS if self._has_ways else self._promises.hops(members)
        link = 0.0 if self._has_ways else self._promises.link_seconds(members, 1)
        for slots in range(max_slots or self.objective.max_slots, 0, -1):
            split = self._best_step(members, slots, min(limit, slots * token_seconds), hops, link)
            if split is not None:
                best, token_seconds = split, split.seconds / slots / FEWER_SLOTS_GAIN
        return best

    def _promised(self, members: Sequence[int], split: Split) -> Performance:
        devices = [members[i] for i in split.order]
        return self.performance(devices, split.counts, split.offloads)

    def _best_step(
        self, members: Sequence[int], slots: int, limit: float, hops: Hops, link_seconds: float
    ) -> Split | None:
        """Return the split with the fastest decode step of ``slots`` requests, if any."""
        kv_tokens = max(self.context_tokens, slots * self.request_tokens)
        best: Split | None = None
        for groups, rows in groupings(slots, len(members)):
            pace = Pace(laps=groups, weight=1.0, extra_seconds=hops.of(rows))
            bound = limit if best is None else min(limit, best.seconds)
            if groups * rows * link_seconds > bound:
                continue
            split = self._split(members, rows, kv_tokens, pace, bound)
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
        return self._promises.performance(devices, counts, offloads)


def _kind(cost: DeviceCost, has_ways: bool) -> tuple[object, ...]:
    """Return what two devices have in common that can stand for each other."""
    if has_ways:
        return (cost.id,)
    return tuple(
        getattr(cost, field.name) for field in fields(cost) if field.name not in ("id", "peers")
    )

"""What a group of devices is worth as one replica, in each role. Pure.

For every group the best split is found for prefill and for decode, the latter together with
the largest number of requests at once that keeps the workload's ``min_tps``. Groups are
evaluated once and remembered, because the search meets them again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

from broker.plan import Plan
from planner.cost import DeviceCost, device_cost
from planner.group_splits import GroupSplits
from planner.masks import members_of
from planner.model import DeviceSpec, ModelSpec, Objective, Workload
from planner.moves import Holdings
from planner.owner import roles_of
from planner.performance import Most, Options, Performance
from planner.promises import Promises
from planner.terms import Terms


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
        TypeError: The model is none in numbers; says what to pass.
    """

    def __init__(
        self,
        devices: Sequence[DeviceSpec],
        model: ModelSpec,
        workload: Workload,
        objective: Objective,
        running: Plan | None = None,
    ) -> None:
        if not isinstance(model, ModelSpec):
            raise TypeError(
                f"the model must be a ModelSpec, not {type(model).__name__}; pass "
                "model.spec(weights) for one of the catalogue"
            )
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
        self._splits = GroupSplits(self.costs, model, self.workload, objective, self._promises)
        self._options: dict[int, Options | None] = {}
        # Equal devices are exchanged, not evaluated again.
        known: dict[tuple[object, ...], int] = {}
        has_ways = any(cost.peers for cost in self.costs)
        kinds = [_kind(cost, has_ways) for cost in self.costs]
        self.kinds = [known.setdefault(kind, len(known)) for kind in kinds]
        self._twins: dict[tuple[int, ...], tuple[list[int], Options | None]] = {}
        self._decode_rates: dict[tuple[int, ...], float] = {}
        self._most: dict[tuple[int, ...], Most] = {}

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
            kinds = self._kinds_of(members)
            if kinds not in self._twins:
                self._twins[kinds] = members, self._evaluate(members)
            twins, options = self._twins[kinds]
            if options is not None and twins is not members:
                options = options.exchanged(dict(zip(twins, members, strict=True)))
            if options is not None and group in self._running:
                options = self._kept_or_new(options, self._running[group])
            self._options[group] = options
        return self._options[group]

    def most(self, group: int) -> Most | None:
        """Return what no split of a group exceeds; None where the model does not fit in it.

        Of what depends on the split, where `tries_all_splits`.
        """
        if self.options(group) is None:
            return None
        members = sorted(members_of(group), key=self.kinds.__getitem__)
        kinds = self._kinds_of(members)
        if kinds not in self._most:
            self._most[kinds] = self._splits.most(members, self._decode_rates[kinds])
        return self._most[kinds]

    def tries_all_orders(self, group: int) -> bool:
        """Whether a group's stages were tried in every order that makes a difference."""
        return self._splits.tries_all_orders(members_of(group))

    def tries_all_splits(self, group: int) -> bool:
        """Whether a group's splits were searched exactly, its order aside."""
        return self._splits.tries_all_splits(members_of(group))

    def _kinds_of(self, members: Sequence[int]) -> tuple[int, ...]:
        return tuple([self.kinds[device] for device in members])

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
        prefill = self._splits.prefill(members) if roles else None
        if prefill is None:
            return None
        decode, most_rate = self._splits.decode(members)
        self._decode_rates[self._kinds_of(members)] = most_rate
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

"""What a group of devices is worth as one replica, in each role. Pure.

For every group the best split is found for prefill and for decode, the latter together with
the largest number of requests at once that keeps the workload's ``min_tps``. Groups are
evaluated once and remembered, because the search meets them again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from math import inf

from broker.plan import Plan
from planner.cost import DeviceCost, device_cost, hop_seconds
from planner.masks import members_of
from planner.model import DeviceSpec, ModelSpec, Objective, Workload
from planner.moves import Holdings
from planner.owner import roles_of
from planner.performance import Options, Performance
from planner.promises import NO_HOPS, Promises, groupings
from planner.splits.linear_stages import LinearStages
from planner.splits.partition import best_split
from planner.splits.split import Offload, Pace, Split, SplitProblem
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
        self._lines = (
            LinearStages(self.costs, model) if LinearStages.describes(self.costs, model) else None
        )
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
        is_pinned = any(self.costs[d].owner.layers is not None for d in members)
        if self._lines is not None and not is_pinned:
            return self._lines.best_split(members, rows, kv_tokens, pace, limit, any_will_do)
        return best_split(self._problem(members, kv_tokens, rows), pace, limit, any_will_do)

    def _best_prefill(self, members: Sequence[int]) -> Performance | None:
        """Balance the stages for prompts; room for more prompts at once may cost balance."""
        prompt = self._promises.prompt_tokens
        best: Performance | None = None
        tried: set[int] = set()
        for prompts in range(len(members) + 1, 0, -1):
            kv_tokens = max(self.context_tokens, prompts * prompt)
            if kv_tokens in tried:
                continue
            tried.add(kv_tokens)
            split = self._split(members, kv_tokens, None, Pace())
            least = 0.0 if best is None else best.prefill_rate * (1 + 1e-9)
            # No pipeline is faster than its slowest stage.
            if split is None or self.workload.prompt_tokens <= least * split.slowest:
                continue
            found = self._promised(members, split)
            if found.prefill_rate > least:
                best = found
        return best

    def _best_decode(self, members: Sequence[int]) -> Performance:
        """Find the largest number of slots, by bisection, and the fastest step with it.

        More slots need more memory and longer steps, so what fails for some number fails
        for every larger one.
        """
        promises = self._promises
        slots = self._most_slots(members, promises.step_seconds)
        if not slots and promises.step_seconds < promises.loose_seconds:
            # As `Promises` has it: a target that nobody keeps does not limit anybody.
            slots = self._most_slots(members, promises.loose_seconds)
        split = self._best_step(members, max(slots, 1), inf)
        assert split is not None, "a group that holds one request has a split"
        return self._promised(members, split)

    def _most_slots(self, members: Sequence[int], limit: float) -> int:
        low, high = 0, self.objective.max_slots
        # Where streams are fast, only the cap stops them: that number is tried first.
        slots = high
        while low < high:
            if self._best_step(members, slots, limit, any_will_do=True) is not None:
                low = slots
            else:
                high = slots - 1
            slots = (low + high + 1) // 2
        return low

    def _promised(self, members: Sequence[int], split: Split) -> Performance:
        devices = [members[i] for i in split.order]
        return self.performance(devices, split.counts, split.offloads)

    def _best_step(
        self, members: Sequence[int], slots: int, limit: float, any_will_do: bool = False
    ) -> Split | None:
        """Return the split with the fastest decode step of ``slots`` requests, if any."""
        kv_tokens = max(self.context_tokens, slots * self.request_tokens)
        # Where the order matters, the problem knows the hops.
        hops = NO_HOPS if self._has_ways else self._promises.hops(members)
        link = 0.0 if self._has_ways else self._promises.link_seconds(members, 1)
        best: Split | None = None
        for groups, rows in groupings(slots, len(members)):
            pace = Pace(laps=groups, weight=1.0, extra_seconds=hops.of(rows))
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
        return self._promises.performance(devices, counts, offloads)


def _kind(cost: DeviceCost, has_ways: bool) -> tuple[object, ...]:
    """Return what two devices have in common that can stand for each other."""
    if has_ways:
        return (cost.id,)
    return tuple(
        getattr(cost, field.name) for field in fields(cost) if field.name not in ("id", "peers")
    )

"""The two kinds of fog on which systems are compared: the paper's, and ours. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from broker.plan import Plan
from planner.assembly import assemble, place_in_plan, planned_replica
from planner.baselines.searches import by_slower_phase, search
from planner.groupings.search import Solution
from planner.model import DeviceSpec, ModelSpec, Objective, Roles, Workload
from planner.paper.calibration import load_calibration
from planner.paper.plans import paper_fog
from planner.paper.published import PaperWorkload
from planner.paper.replicas import PaperFog
from planner.performance import Member
from planner.planning import plan as live_plan
from planner.replicas import Fog
from planner.roles import score
from planner.simulation import GroupRule, Network, SimReplica, SimStage
from planner.simulation.replicas import kv_bytes_per_token, measured_replica, network_of
from planner.simulation.tables import decode_times, prefill_rate

CHUNK_TOKENS = 128
"""Grid of prefill chunks in every replica of every system."""


class PaperSite:
    """The paper's seven devices under its own cost model.

    Decode steps are the paper's (micro-batches; M times the slowest stage), planned and true
    speeds are the same, KV cache takes no memory but time on the 920 Mbit/s links. Prompts
    are cut into chunks in all systems, so that replicas that do both can decode in between.
    """

    def __init__(self, workload: PaperWorkload) -> None:
        calibration = load_calibration()
        self.workload = workload
        self.table: PaperFog = paper_fog(workload)
        self.network: Network = network_of(calibration.devices)
        self.kv_bytes_per_token: float = calibration.kv_bytes_per_token
        self.num_layers: int = calibration.model.num_layers

    def replicas(self, members: Sequence[Member]) -> tuple[SimReplica, ...]:
        """Return the simulated replicas of a solution."""
        return tuple(self._replica(member) for member in members)

    def live_members(self, seed: int = 0, roles: Roles = Roles.SEPARATE) -> tuple[Member, ...]:
        """Return the plan that our live planner's objective prefers under this cost model."""
        return search(self.table, by_slower_phase(self.table, roles), seed)[0].members

    def _replica(self, member: Member) -> SimReplica:
        found, fog = member.performance, self.table
        stages = fog.stages(found.devices, found.counts, found.offloads)
        ends = accumulate(found.counts)
        return SimReplica(
            id="+".join(stage.device for stage in stages),
            role=member.role,
            stages=tuple(
                SimStage(
                    device=stage.device,
                    prefill_seconds=prefill_rate(
                        fog.workload.prompt_tokens / stage.prefill_seconds
                    ),
                    decode_seconds=decode_times(list(enumerate(stage.decode_seconds, start=1))),
                    layers=(end - stage.num_blocks, end),
                )
                for stage, end in zip(stages, ends, strict=True)
            ),
            slots=found.slots,
            chunk_tokens=CHUNK_TOKENS,
            groups=GroupRule.PAPER,
            planned_context=fog.workload.prompt_tokens + fog.workload.answer_tokens // 2,
        )


class FogSite:
    """Any fog under our cost model: KV cache takes memory, times grow with the context."""

    def __init__(
        self,
        devices: Sequence[DeviceSpec],
        model: ModelSpec,
        workload: Workload,
        objective: Objective | None = None,
    ) -> None:
        self.devices = tuple(devices)
        self.model = model
        self.table: Fog = Fog(devices, model, workload, objective or Objective())
        self.network: Network = network_of(devices)
        self.kv_bytes_per_token: float = kv_bytes_per_token(model)
        self.num_layers: int = model.num_layers
        self._known = {device.id: device for device in self.devices}
        # The same replica is in many candidates, and its tables take long to compute.
        self._replicas: dict[Member, SimReplica] = {}

    def replicas(self, members: Sequence[Member]) -> tuple[SimReplica, ...]:
        """Return the simulated replicas of a solution, in the order of its plan."""
        found = [self._replica(member) for member in members]
        return tuple(sorted(found, key=lambda replica: place_in_plan(replica.role, replica.id)))

    def _replica(self, member: Member) -> SimReplica:
        if member not in self._replicas:
            workload = self.table.workload
            self._replicas[member] = measured_replica(
                planned_replica(self.table, member),
                self._known,
                self.model,
                workload,
                workload.chunk_tokens,
            )
        return self._replicas[member]

    def plan(self, members: Sequence[Member], optimality: str = "") -> Plan:
        """Return a solution as a plan."""
        value = score(members, self.table.workload, Roles.MIXED)
        return assemble(self.table, Solution(value, tuple(members)), optimality)

    def live_members(self, seed: int = 0, roles: Roles | None = None) -> tuple[Member, ...]:
        """Return the plan that our live planner makes of this fog.

        Args:
            seed: Of the genetic algorithm.
            roles: The planner's setting; None: that of the objective.
        """
        table = self.table
        objective = table.objective
        if roles is not None:
            objective = replace(objective, roles=roles)
        found = live_plan(self.devices, self.model, table.workload, objective, seed)
        index = {cost.id: device for device, cost in enumerate(table.costs)}
        return tuple(
            Member(
                replica.role,
                table.performance(
                    [index[stage.device] for stage in replica.stages],
                    [len(stage.layers) for stage in replica.stages],
                ),
            )
            for replica in found.replicas
        )

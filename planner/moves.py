"""What devices hold of the running plan, and what another plan makes them load. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker.placement import kv_reserved_tokens
from broker.plan import Plan
from planner.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the devices of a plan have in memory.

    Attributes:
        held: Device id to its stages, as layers ``[start, end)``.
        kv_tokens: Positions of the longest request, which each stage needs room for.
        replicas: Devices and first layers of each replica.
    """

    model: ModelSpec
    held: Mapping[str, Sequence[tuple[int, int]]]
    kv_tokens: int = 0
    replicas: frozenset[frozenset[tuple[str, int]]] = frozenset()

    @classmethod
    def of(cls, plan: Plan, model: ModelSpec) -> Holdings:
        """Return what the devices of ``plan`` hold; of another model nothing is of use."""
        if (plan.revision, plan.weights) != (model.revision, model.weights):
            return cls(model, {})
        held: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for stage in (stage for replica in plan.replicas for stage in replica.stages):
            held[stage.device].append((stage.layers.start, stage.layers.end))
        replicas = (((s.device, s.layers.start) for s in r.stages) for r in plan.replicas)
        tokens = kv_reserved_tokens(plan.context_tokens)
        return cls(model, dict(held), tokens, frozenset(map(frozenset, replicas)))

    def bytes_beside(self, device: str, start: int, end: int) -> int:
        """Return what a device's memory holds with layers ``[start, end)`` beside all it has.

        Weights count once; KV, for one request, counts for each stage.
        """
        return self.model.held_bytes([*self.held.get(device, ()), (start, end)], self.kv_tokens)

    def missing_bytes(self, device: str, start: int, end: int) -> int:
        """Return the weights of layers ``[start, end)`` and their ends that a device lacks."""
        held = self.held.get(device, ())
        return self.model.held_bytes([*held, (start, end)], 0) - self.model.held_bytes(held, 0)

    def lacking(self, plan: Plan) -> dict[str, int]:
        """Return the weights in bytes that each device of ``plan`` lacks; 0: it has them all."""
        return {
            stage.device: self.missing_bytes(stage.device, stage.layers.start, stage.layers.end)
            for replica in plan.replicas
            for stage in replica.stages
        }

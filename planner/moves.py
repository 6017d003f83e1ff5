"""What devices hold of the running plan, and what another plan makes them load. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from broker.placement import kv_reserved_tokens
from broker.plan import Plan
from planner.model import ModelSpec


class _Held(NamedTuple):
    layers: frozenset[int] = frozenset()
    embedding: bool = False
    head: bool = False
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Holdings:
    """The weights that the devices of a plan have in memory.

    Attributes:
        held: Device id to what it holds; the bytes include KV of one request for each stage.
        kv_tokens: Positions of the longest request, which each stage needs room for.
        replicas: Devices and first layers of each replica.
    """

    model: ModelSpec
    held: dict[str, _Held]
    kv_tokens: int = 0
    replicas: frozenset[frozenset[tuple[str, int]]] = frozenset()

    @classmethod
    def of(cls, plan: Plan, model: ModelSpec) -> Holdings:
        """Return what the devices of ``plan`` hold; of another model nothing is of use."""
        if (plan.revision, plan.weights) != (model.revision, model.weights):
            return cls(model, {})
        found = cls(model, {}, kv_reserved_tokens(plan.context_tokens))
        for stage in (stage for replica in plan.replicas for stage in replica.stages):
            start, end = stage.layers.start, stage.layers.end
            before = found.held.get(stage.device, _Held())
            found.held[stage.device] = _Held(
                before.layers.union(range(start, end)),
                before.embedding or start == 0,
                before.head or end == model.num_layers,
                found.bytes_beside(stage.device, start, end),
            )
        replicas = (((s.device, s.layers.start) for s in r.stages) for r in plan.replicas)
        return replace(found, replicas=frozenset(map(frozenset, replicas)))

    def bytes_beside(self, device: str, start: int, end: int) -> int:
        """Return what a device's memory holds with layers ``[start, end)`` beside all it has.

        Weights count once; KV, for one request, counts for each stage.
        """
        before = self.held.get(device, _Held())
        kv_bytes = self.kv_tokens * sum(self.model.kv_bytes[start:end])
        return before.num_bytes + self.missing_bytes(device, start, end) + kv_bytes

    def missing_bytes(self, device: str, start: int, end: int) -> int:
        """Return the weights of layers ``[start, end)`` and their ends that a device lacks."""
        model, held = self.model, self.held.get(device, _Held())
        missing = sum(model.block_bytes[i] for i in range(start, end) if i not in held.layers)
        first, last = start == 0, end == model.num_layers
        missing += model.embedding_bytes if first and not held.embedding else 0
        missing += model.head_bytes if last and not held.head else 0
        # A tied matrix is loaded once, and not at all where the other end is there already.
        has_new_end = (first and not held.embedding) or (last and not held.head)
        has_both = (first or held.embedding) and (last or held.head)
        return missing - (model.shared_bytes if has_new_end and has_both else 0)

    def lacking(self, plan: Plan) -> dict[str, int]:
        """Return the weights in bytes that each device of ``plan`` lacks; 0: it has them all."""
        return {
            stage.device: self.missing_bytes(stage.device, stage.layers.start, stage.layers.end)
            for replica in plan.replicas
            for stage in replica.stages
        }

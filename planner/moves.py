"""What devices hold of the running plan, and what another plan makes them load. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from broker.plan import Plan
from planner.model import ModelSpec


class _Held(NamedTuple):
    layers: frozenset[int] = frozenset()
    embedding: bool = False
    head: bool = False


@dataclass(frozen=True, slots=True)
class Holdings:
    """The weights that the devices of a plan have in memory.

    Attributes:
        held: Device id to what it holds.
    """

    model: ModelSpec
    held: dict[str, _Held]

    @classmethod
    def of(cls, plan: Plan, model: ModelSpec) -> Holdings:
        """Return what the devices of ``plan`` hold; of another model nothing is of use."""
        held: dict[str, _Held] = {}
        same = (plan.revision, plan.weights) == (model.revision, model.weights)
        for stage in (s for replica in plan.replicas if same for s in replica.stages):
            before = held.get(stage.device, _Held())
            held[stage.device] = _Held(
                before.layers.union(range(stage.layers.start, stage.layers.end)),
                before.embedding or stage.embedding,
                before.head or stage.head,
            )
        return cls(model, held)

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

"""What stages take in the memory of a device, of whichever models they are. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from broker.identity import ModelIdentity, identity
from broker.placement import kv_reserved_tokens
from broker.plan import ModelStages, Plan, StageAssignment
from planner.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Needs:
    """The models of some plans.

    Attributes:
        models: Those that are known; of stages of another one nothing can be said.
        context_tokens: Longest prompt plus answer of each.
        owners: Id of a replica to its model.
    """

    models: Mapping[ModelIdentity, ModelSpec]
    context_tokens: Mapping[ModelIdentity, int]
    owners: Mapping[str, ModelIdentity]

    @classmethod
    def of(cls, models: Iterable[ModelSpec], plans: Iterable[Plan | None]) -> Needs:
        """Return the needs of plans; where two plans are for one model, the last counts."""
        parts = [part for plan in plans if plan is not None for part in plan.parts]
        return cls(
            {identity(model): model for model in models},
            {identity(part): part.context_tokens for part in parts},
            {replica.id: identity(part) for part in parts for replica in part.replicas},
        )

    def knows(self, plan: Plan | ModelStages) -> bool:
        """Whether the model of a plan is known."""
        return identity(plan) in self.models

    def with_stages(self, parts: Iterable[ModelStages]) -> Needs:
        """Return the needs with what a device was told earlier."""
        more = {stage.replica: identity(part) for part in parts for stage in part.stages}
        return Needs(self.models, self.context_tokens, {**more, **self.owners})

    def fit(self, stages: Iterable[StageAssignment], memory_bytes: int) -> bool:
        """Whether weights, held once, and KV of one request for each stage fit.

        KV lies in slabs that are taken and given back as requests come and go, so both plans
        share the room; each needs enough for the longest request.
        """
        by_model: dict[ModelIdentity, list[StageAssignment]] = {}
        for stage in stages:
            by_model.setdefault(self.owners[stage.replica], []).append(stage)
        return sum(self._num_bytes(key, held) for key, held in by_model.items()) <= memory_bytes

    def _num_bytes(self, key: ModelIdentity, stages: Iterable[StageAssignment]) -> int:
        model = self.models.get(key)
        if model is None:
            return 0
        ranges = [(stage.layers.start, stage.layers.end) for stage in stages]
        return model.held_bytes(ranges, kv_reserved_tokens(self.context_tokens.get(key, 0)))

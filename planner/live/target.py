"""What is planned for: the model that gateways publish, the workload that settings name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from broker.architecture import UnsupportedModelError
from broker.control import ModelManifest
from broker.placement import formats
from broker.plan import Plan
from planner.live.inputs import model_spec
from planner.model import ModelSpec, Workload

# Hidden states of a chunk are one message; half of the usual payload limit leaves room.
_CHUNK_BYTES: Final = 1 << 19


class NoModelError(Exception):
    """There is nothing to plan for; the message says what is awaited, or what to change."""


def chosen_model(manifests: Mapping[str, ModelManifest], name: str | None) -> ModelSpec:
    """Return the model to plan for.

    Args:
        manifests: What gateways publish.
        name: The one that is wanted; None when there should be only one.

    Raises:
        NoModelError: There is none, or several, or it cannot be planned.
    """
    wanted = [m for m in manifests.values() if name is None or m.name == name]
    if not wanted:
        which = "" if name is None else f" {name}"
        raise NoModelError(f"waiting for the model{which}: no gateway has published it")
    if len(wanted) > 1:
        names = ", ".join(sorted(manifest.name for manifest in wanted))
        raise NoModelError(
            f"several models are published ({names}); set E2LLM_PLANNER_MODEL to one of them"
        )
    try:
        return model_spec(wanted[0])
    except UnsupportedModelError as error:
        raise NoModelError(f"the model {wanted[0].name} cannot be planned: {error}") from error


def is_for(plan: Plan, model: ModelSpec) -> bool:
    """Return whether a plan is for this model in these formats."""
    return formats(plan) == formats(model)


def fitted_workload(workload: Workload, model: ModelSpec) -> Workload:
    """Return the workload with a chunk grid whose messages stay small enough for this model."""
    chunk = workload.chunk_tokens
    while chunk > 1 and chunk * model.activation_bytes > _CHUNK_BYTES:
        chunk //= 2
    return replace(workload, chunk_tokens=chunk)

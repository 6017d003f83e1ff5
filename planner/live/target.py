"""What is planned for: the model that gateways publish, the workload that settings name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from broker.architecture import UnsupportedModelError
from broker.control import ModelManifest
from broker.identity import identity
from broker.plan import Plan
from planner.live.inputs import model_spec
from planner.model import ModelSpec, Workload

# Hidden states of a chunk are one message; half of the usual payload limit leaves room.
_CHUNK_BYTES: Final = 1 << 19


class NoModelError(Exception):
    """There is nothing to plan for; the message says what is awaited, or what to change."""


def chosen_models(manifests: Mapping[str, ModelManifest], name: str | None) -> list[ModelSpec]:
    """Return the models to plan for, in the order of their names.

    Args:
        manifests: What gateways publish.
        name: The only one that is wanted; None: those in use.

    Raises:
        NoModelError: There is none, or one cannot be planned.
    """
    published = [m for m in manifests.values() if name is None or m.name == name]
    wanted = [manifest for manifest in published if manifest.in_use]
    if not published:
        which = "" if name is None else f" {name}"
        raise NoModelError(f"waiting for the model{which}: no gateway has published it")
    if not wanted:
        names = ", ".join(sorted(manifest.name for manifest in published))
        raise NoModelError(f"no model is in use; published: {names}; use one: e2llm model use NAME")
    # Two gateways may publish the same model under two names.
    distinct = {identity(manifest): manifest for manifest in wanted}
    found = []
    for manifest in sorted(distinct.values(), key=lambda each: each.name):
        try:
            found.append(model_spec(manifest))
        except UnsupportedModelError as error:
            raise NoModelError(f"the model {manifest.name} cannot be planned: {error}") from error
    return found


def known_models(manifests: Iterable[ModelManifest]) -> list[ModelSpec]:
    """Return every published model that can be planned, in use or not."""
    found = []
    for manifest in manifests:
        with contextlib.suppress(UnsupportedModelError):
            found.append(model_spec(manifest))
    return found


def is_for(plan: Plan, model: ModelSpec) -> bool:
    """Return whether a plan is for this model in these formats."""
    return identity(plan) == identity(model)


def fitted_workload(workload: Workload, model: ModelSpec) -> Workload:
    """Return the workload with a chunk grid whose messages stay small enough for this model."""
    chunk = workload.chunk_tokens
    while chunk > 1 and chunk * model.activation_bytes > _CHUNK_BYTES:
        chunk //= 2
    return replace(workload, chunk_tokens=chunk)

"""Which of a gateway's models requests may name, and which one they get that name none. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from broker.control import ModelManifest
from broker.plan import Plan


def is_served(manifest: ModelManifest, active: Plan | None) -> bool:
    """Whether the active plan is for the model, and goes on with it."""
    part = None if active is None else active.part_for(manifest)
    return part is not None and not part.is_leaving


def may_be_named(manifest: ModelManifest, active: Plan | None) -> bool:
    """Whether new requests may name a model: it is in use, or nothing serves instead yet."""
    return manifest.in_use or is_served(manifest, active)


def in_order(manifests: Iterable[ModelManifest], active: Plan | None) -> list[ModelManifest]:
    """Return the models that may be named; the first is for requests that name none.

    That is the one in use as soon as it is served, and until then whichever is.
    """
    named = [manifest for manifest in manifests if may_be_named(manifest, active)]
    return sorted(named, key=lambda each: (not is_served(each, active), not each.in_use))

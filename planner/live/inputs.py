"""From messages on the bus to the values that the planner plans with. Pure.

A profile that cannot be used is a `UnusableProfileError` that names the device, so one bad
device is left out of a plan and never prevents it.
"""

from __future__ import annotations

import math
from typing import Final

from broker import architecture
from broker.control import DeviceProfile, LayerTimes, ModelManifest, OwnerRules
from broker.plan import LayerRange, Role
from planner.live.conditions import Condition
from planner.model import DeviceSpec, ModelSpec
from planner.owner import Owner

# Between stages; whole numbers are weights alone, hidden states stay float32.
_ACTIVATION_BYTES: Final = {"bfloat16": 2}


class UnusableProfileError(ValueError):
    """A device's profile does not fit the model; the message says why."""


def model_spec(manifest: ModelManifest) -> ModelSpec:
    """Return the manifest in numbers.

    Raises:
        architecture.UnsupportedModelError: The configuration asks for something that is not
            supported; the message names the key.
    """
    config = architecture.parse_config(manifest.config)
    layers = range(config.num_layers)
    weights, kv_format = manifest.weights, manifest.kv_format
    sent = architecture.kv_sent_bytes_per_token(config, kv_format, manifest.kv_transfer, 1)
    return ModelSpec(
        name=manifest.name,
        revision=manifest.revision,
        weights=weights,
        kv_format=kv_format,
        block_kinds=tuple(architecture.block_kind(config, layer) for layer in layers),
        block_bytes=tuple(architecture.block_bytes(config, weights, layer) for layer in layers),
        kv_bytes=(architecture.kv_bytes_per_token(config, kv_format, 1),) * config.num_layers,
        embedding_bytes=architecture.embedding_bytes(config, weights),
        head_bytes=architecture.head_bytes(config, weights),
        shared_bytes=architecture.shared_bytes(config, weights),
        activation_bytes=config.hidden_size * _ACTIVATION_BYTES.get(weights, 4),
        context_limit=architecture.context_limit(config),
        kv_transfer=manifest.kv_transfer,
        packed_kv_bytes=(sent,) * config.num_layers,
    )


def device_spec(
    device: str,
    profile: DeviceProfile,
    condition: Condition,
    model: ModelSpec,
    rules: OwnerRules | None = None,
) -> DeviceSpec:
    """Return the device as measured, with the speed, link and memory that it has now.

    ``rules`` are what its owner allows; None: what the profile says.

    Raises:
        UnusableProfileError: It measured another model or weight format, or not every kind
            of block.
    """
    measured = profile.times_for(model.revision, model.weights)
    if measured is None:
        everything = (profile, *profile.others)
        others = [times.weights for times in everything if times.model_revision == model.revision]
        if not others:
            raise UnusableProfileError(f"{device} has not measured this revision of the model yet")
        raise UnusableProfileError(
            f"{device} measured {others[0]} weights, the model has {model.weights}"
        )
    missing = set(model.block_kinds) - set(measured.blocks)
    if missing:
        raise UnusableProfileError(f"{device} did not measure blocks of kind {sorted(missing)}")
    watts = profile.idle_watts, profile.busy_watts
    if watts[0] is None or watts[1] is None or not 0 <= watts[0] <= watts[1] < math.inf:
        # Its times are good all the same, and energy seldom counts.
        watts = None, None
    return DeviceSpec(
        id=device,
        memory_bytes=condition.memory_bytes(measured.memory_bytes),
        blocks={kind: _finite(device, times) for kind, times in measured.blocks.items()},
        embedding=_finite(device, measured.embedding),
        head=_finite(device, measured.head),
        link=condition.link(profile.link),
        speed=condition.speed,
        idle_watts=watts[0],
        busy_watts=watts[1],
        owner=owner_of(rules or profile.owner),
    )


def owner_of(rules: OwnerRules) -> Owner:
    """Return what an owner allows as the search sees it; hours are not its business."""
    return Owner(
        frozenset(Role(phase) for phase in rules.phases),
        rules.text,
        None if rules.layers is None else LayerRange(*rules.layers),
        rules.share,
    )


def _finite(device: str, times: LayerTimes) -> LayerTimes:
    seconds = [*(t.seconds for t in times.prefill), *(t.seconds for t in times.decode)]
    if not all(math.isfinite(value) for value in seconds):
        raise UnusableProfileError(f"{device} measured a time that is not a finite number")
    if any(t.num_tokens < 1 for t in times.prefill) or any(t.batch < 1 for t in times.decode):
        raise UnusableProfileError(f"{device} measured a prompt or a batch of less than one")
    return times

"""From messages on the bus to the values that the planner plans with. Pure.

A profile that cannot be used is a `UnusableProfileError` that names the device, so one bad
device is left out of a plan and never prevents it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from broker import architecture
from broker.control import DeviceProfile, LayerTimes, Link, ModelManifest, Telemetry
from planner.model import DeviceSpec, ModelSpec

# Between stages; whole numbers are weights alone, hidden states stay float32.
_ACTIVATION_BYTES: Final = {"bfloat16": 2}
# A device that says it runs ten thousand times slower, or faster, has a broken clock.
_SPEED_RANGE: Final = (1e-4, 1e4)


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
    )


def device_spec(
    device: str, profile: DeviceProfile, telemetry: Telemetry, model: ModelSpec
) -> DeviceSpec:
    """Return the device as measured, at the speed and over the link that telemetry reports.

    Raises:
        UnusableProfileError: It measured another model or weight format, or not every kind
            of block.
    """
    if profile.model_revision != model.revision:
        raise UnusableProfileError(f"{device} has not measured this revision of the model yet")
    if profile.weights != model.weights:
        raise UnusableProfileError(
            f"{device} measured {profile.weights} weights, the model has {model.weights}"
        )
    missing = set(model.block_kinds) - set(profile.blocks)
    if missing:
        raise UnusableProfileError(f"{device} did not measure blocks of kind {sorted(missing)}")
    link = Link(
        latency_seconds=_or(telemetry.link_latency_seconds, profile.link.latency_seconds),
        bytes_per_second=_or(telemetry.link_bytes_per_second, profile.link.bytes_per_second),
    )
    watts = profile.idle_watts, profile.busy_watts
    if watts[0] is None or watts[1] is None or not 0 <= watts[0] <= watts[1] < math.inf:
        # Its times are good all the same, and energy seldom counts.
        watts = None, None
    return DeviceSpec(
        id=device,
        memory_bytes=profile.memory_bytes,
        blocks={kind: _finite(device, times) for kind, times in profile.blocks.items()},
        embedding=_finite(device, profile.embedding),
        head=_finite(device, profile.head),
        link=link,
        speed=_or(telemetry.speed_ratio, 1.0),
        idle_watts=watts[0],
        busy_watts=watts[1],
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _finite(device: str, times: LayerTimes) -> LayerTimes:
    seconds = [*(t.seconds for t in times.prefill), *(t.seconds for t in times.decode)]
    if not all(math.isfinite(value) for value in seconds):
        raise UnusableProfileError(f"{device} measured a time that is not a finite number")
    if any(t.num_tokens < 1 for t in times.prefill) or any(t.batch < 1 for t in times.decode):
        raise UnusableProfileError(f"{device} measured a prompt or a batch of less than one")
    return times


def parse_telemetry(payload: bytes | str) -> tuple[Telemetry, tuple[str, ...]]:
    """Read telemetry that anybody may have written, field by field.

    Returns:
        What is valid, and the names of the fields that were refused (``"*"`` when it is no
        JSON object at all). Unknown fields are ignored.
    """
    try:
        values = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Telemetry(), ("*",)
    if not isinstance(values, dict):
        return Telemetry(), ("*",)
    return valid_telemetry(values)


def valid_telemetry(values: Mapping[str, Any]) -> tuple[Telemetry, tuple[str, ...]]:
    """Return the valid fields of ``values`` and the names of those refused."""
    kept: dict[str, Any] = {}
    refused: list[str] = []
    for name in Telemetry.__struct_fields__:
        value = values.get(name)
        if value is None:
            continue
        if _is_valid(name, value):
            kept[name] = value
        else:
            refused.append(name)
    try:
        return msgspec.convert(kept, Telemetry), tuple(refused)
    except msgspec.ValidationError:
        # Cannot happen while the checks below are as strict as the types.
        return Telemetry(), (*refused, *kept)


def _is_valid(name: str, value: Any) -> bool:
    if name == "stage_seconds":
        return isinstance(value, dict) and all(
            isinstance(key, str) and _is_number(seconds) and seconds >= 0
            for key, seconds in value.items()
        )
    if not _is_number(value):
        return False
    if name == "temperature_celsius":
        return bool(value > -273.15)
    if name == "speed_ratio":
        return bool(_SPEED_RANGE[0] <= value <= _SPEED_RANGE[1])
    if name == "link_bytes_per_second":
        return bool(value > 0)
    whole = name in {"queue_length", "kv_used_tokens", "dropped_messages", "late_steps"}
    if whole or name == "memory_available_bytes":
        return isinstance(value, int) and value >= 0
    return bool(value >= 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

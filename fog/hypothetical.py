"""The devices of a fog file as the planner would know them, without starting any of them.

A device with a slowdown has this machine's measured times, slowed: those of the state folder's
cache, which `e2llm up` fills, or measured now (a second). A device of the catalogue has the
times that follow from its data sheet. Everything behind that is what plans in production.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from broker.architecture import WEIGHT_FORMATS, UnsupportedModelError, parse_config
from broker.control import Link, ModelManifest
from fog.config import DeviceConfig
from fog.model_choice import DEMO_MODEL, DEMO_NAME, ModelChoiceError
from fog.owners import OwnerConfig
from fog.quantities import Memory, suggest
from fog.shapes import config_of
from fog.tomlreader import ConfigError

if TYPE_CHECKING:
    from nodes.calibration import Calibration
    from planner.catalogue.models import CatalogueModel, WeightFormat
    from planner.model import DeviceSpec, ModelSpec

LOOPBACK: Final = Link(latency_seconds=0.00025, bytes_per_second=500e6)
"""Link of a device on the broker's machine, to which an emulated delay is added. Nodes of the
default fog measured 0.21 to 0.32 ms more than what they emulate; the rate is an assumption."""

_HUGE_BLOCK_BYTES: Final = 2 << 30
"""Larger blocks are not measured on this machine: making one would take most of its memory."""

Calibrate = Callable[[ModelManifest], "Calibration"]
"""This machine's times for a model; `measured_here` makes one."""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model to plan for.

    Attributes:
        spec: In the planner's numbers.
        shape: In the catalogue's, for its devices.
        manifest: As a gateway would publish it, for measuring this machine; None: this
            machine's nodes cannot compute it.
        obstacle: Why there is no manifest.
    """

    spec: ModelSpec
    shape: CatalogueModel
    weights: WeightFormat
    manifest: ModelManifest | None
    obstacle: str = ""


class KvFormats(NamedTuple):
    """How KV is held, and how it travels."""

    held: str
    sent: str


def choose_planned_model(
    text: str | None,
    weights: str | None = None,
    kv_format: str | None = None,
    kv_transfer: str | None = None,
) -> PlannedModel:
    """Return the model that ``--model`` names: a folder, one of the catalogue, or the default.

    Raises:
        ModelChoiceError: There is no such model, or it cannot be planned.
    """
    from planner.catalogue.models import WeightFormat, load_models

    wanted = weights or "float32"
    if wanted not in list(WeightFormat):
        known = ", ".join(WeightFormat)
        raise ModelChoiceError(f"--weights {wanted}: no such format; use one of {known}")
    kv = KvFormats(kv_format or "float32", kv_transfer or "exact")
    models = load_models()
    if text is not None and text in models:
        return _from_catalogue(models[text], WeightFormat(wanted), kv)
    folder = DEMO_MODEL if text is None else Path(text).expanduser()
    if not (folder / "config.json").is_file():
        raise ModelChoiceError(
            f"--model {text}: no folder with a config.json, and not in the catalogue"
            f"{suggest(str(text), list(models))}"
        )
    return _from_folder(
        folder, DEMO_NAME if text is None else folder.name, WeightFormat(wanted), kv
    )


def _from_catalogue(shape: CatalogueModel, weights: WeightFormat, kv: KvFormats) -> PlannedModel:
    """Return a model of the catalogue: where our nodes can hold it, as they hold it."""
    from planner.live.inputs import model_spec

    try:
        spec = shape.spec(weights, kv.held)
    except ValueError as error:
        raise ModelChoiceError(f"--model {shape.name}: {error}") from error
    if weights not in WEIGHT_FORMATS:
        return PlannedModel(spec, shape, weights, None, f"our nodes do not hold {weights} weights")
    manifest = ModelManifest(
        name=shape.name,
        revision=spec.revision,
        config=config_of(shape),
        tensors={},
        weights=str(weights),
        kv_format=kv.held,
        kv_transfer=kv.sent,
    )
    try:
        return PlannedModel(model_spec(manifest), shape, weights, manifest)
    except UnsupportedModelError as error:
        raise ModelChoiceError(f"--model {shape.name}: {error}") from error


def _from_folder(folder: Path, name: str, weights: WeightFormat, kv: KvFormats) -> PlannedModel:
    from planner.catalogue.models import CatalogueModel
    from planner.live.inputs import model_spec

    try:
        raw = json.loads((folder / "config.json").read_text("utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("is not a JSON object")
        config = parse_config(raw)
        manifest = ModelManifest(
            name=name,
            revision=f"folder:{name}",
            config=raw,
            tensors={},
            weights=str(weights),
            kv_format=kv.held,
            kv_transfer=kv.sent,
        )
        spec = model_spec(manifest)
    except (OSError, ValueError) as error:
        what = "" if isinstance(error, UnsupportedModelError) else "config.json: "
        raise ModelChoiceError(f"--model {folder}: {what}{error}") from error
    return PlannedModel(spec, CatalogueModel.of_config(name, config), weights, manifest)


def device_specs(
    devices: tuple[DeviceConfig, ...],
    model: PlannedModel,
    chunk_tokens: int,
    calibrate: Calibrate,
) -> tuple[DeviceSpec, ...]:
    """Return what the planner would know of the devices.

    Raises:
        ConfigError: One cannot be known; the message names it and says what would help.
    """
    calibration: Calibration | None = None
    found = []
    for device in devices:
        if device.is_emulated:
            if calibration is None:
                calibration = calibrate(_manifest_for(device, model))
            spec = _emulated(device, model, calibration)
        else:
            spec = _from_data_sheet(device, model, chunk_tokens)
        found.append(_owned(spec, device.owner))
    return tuple(found)


def _owned(spec: DeviceSpec, owner: OwnerConfig) -> DeviceSpec:
    """Return the device as far as its owner allows; quiet hours are not asked."""
    from planner.live.inputs import owner_of

    rules = owner.rules
    return replace(spec, owner=owner_of(rules), speed=spec.speed * rules.share)


def _manifest_for(device: DeviceConfig, model: PlannedModel) -> ModelManifest:
    why = model.obstacle
    if model.manifest is not None:
        if max(model.spec.block_bytes) <= _HUGE_BLOCK_BYTES:
            return model.manifest
        why = f"a block of {model.spec.name} is too large to be measured here"
    raise ConfigError(
        f"device {device.id}: {why}, so the times of this machine cannot stand for it; "
        'say which device of the catalogue it is, as in catalogue = "raspberry-pi-5-8gb" '
        "(`e2llm catalogue` lists them), or its compute, memory_rate and model_memory"
    )


def _emulated(device: DeviceConfig, model: PlannedModel, calibration: Calibration) -> DeviceSpec:
    from planner.model import DeviceSpec

    slowed = calibration.slowed(device.slowdown)
    assert device.model_memory is not None, "a device without a catalogue entry says its memory"
    return DeviceSpec(
        id=device.id,
        memory_bytes=_memory_bytes(device.model_memory, model.spec),
        blocks=slowed.blocks,
        embedding=slowed.embedding,
        head=slowed.head,
        link=Link(
            latency_seconds=LOOPBACK.latency_seconds + (device.link_delay_seconds or 0.0),
            bytes_per_second=device.link_bytes_per_second or LOOPBACK.bytes_per_second,
        ),
    )


def _from_data_sheet(device: DeviceConfig, model: PlannedModel, chunk_tokens: int) -> DeviceSpec:
    from planner.catalogue.devices import device_of_rates, load_devices

    if device.rates is not None:
        assert device.model_memory is not None, "a device outside the catalogue says its memory"
        entry = device_of_rates(
            device.id,
            device.rates.flops_per_second,
            device.rates.bytes_per_second,
            _memory_bytes(device.model_memory, model.spec),
        )
    else:
        entry = load_devices().devices[str(device.catalogue)]
    delay, rate = device.link_delay_seconds, device.link_bytes_per_second
    link = Link(
        latency_seconds=entry.link.latency_seconds if delay is None else delay,
        bytes_per_second=entry.link.bytes_per_second if rate is None else rate,
    )
    if not model.spec.ffn_bytes:
        entry = entry.without_host_memory()
    spec = entry.spec(
        device.id,
        model.shape,
        model.weights,
        model.spec.kv_format,
        chunk_tokens,
        link,
        device.slowdown,
    )
    if device.model_memory is not None:
        spec = replace(spec, memory_bytes=_memory_bytes(device.model_memory, model.spec))
    return spec


def _memory_bytes(memory: Memory, model: ModelSpec) -> int:
    """Return an offer in bytes; a share counts weights and KV as nodes do."""
    if memory.num_bytes is not None:
        return memory.num_bytes
    from planner.model import Workload

    assert memory.share is not None, "an offer has a share or bytes"
    context = min(model.context_limit, Workload().context_tokens)
    return int(memory.share * (model.weight_bytes + context * sum(model.kv_bytes)))


def measured_here(cache: Path) -> Calibrate:
    """Return what measures this machine, one thread as `e2llm up` does, or reads the cache."""

    def calibrate(manifest: ModelManifest) -> Calibration:
        from nodes.calibrator import CalibrationFailed, Calibrator

        calibrator = Calibrator(cache, threads=1)
        calibrator.start(manifest)
        result = calibrator.events.get()
        if isinstance(result, CalibrationFailed):
            raise ConfigError(f"this machine's times for {manifest.name}: {result.error}")
        return result.calibration

    return calibrate

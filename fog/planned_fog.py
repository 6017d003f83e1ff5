"""A fog file and a model, ready to be planned without starting anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fog.config import DeviceConfig, FogConfig, load_config
from fog.hypothetical import (
    Calibrate,
    PlannedModel,
    choose_planned_model,
    device_specs,
)
from fog.settable import gateway_settable, planner_settable

if TYPE_CHECKING:
    from planner.live.settings import PlannerSettings
    from planner.model import DeviceSpec
    from planner.whatif.outcomes import Problem


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line says beside the fog file; None: as the file says.

    Attributes:
        model: Folder or name; None: the demo model.
        ttft_seconds: Target for the first token.
        tpot_seconds: Target for each further token.
        seed: Of the genetic algorithm, and of requests.
    """

    model: str | None = None
    weights: str | None = None
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PlannedFog:
    """A fog file with the model that its devices are to serve.

    Attributes:
        calibrate: This machine's times, for devices that are emulated.
        problem: The workload is that of the file's planner.
    """

    config: FogConfig
    model: PlannedModel
    calibrate: Calibrate
    problem: Problem

    def specs(self, devices: Sequence[DeviceConfig]) -> tuple[DeviceSpec, ...]:
        """Return devices as the planner would know them."""
        chunk_tokens = self.problem.workload.chunk_tokens
        return device_specs(tuple(devices), self.model, chunk_tokens, self.calibrate)


def load_fog(fog: Path, wishes: Wishes, calibrate: Calibrate) -> PlannedFog:
    """Read a fog file and a model.

    Raises:
        ConfigError: The file is wrong; names line and key.
        ModelChoiceError: The model is.
    """
    from planner.catalogue.devices import load_devices
    from planner.live.target import fitted_workload
    from planner.whatif.outcomes import Problem

    config = load_config(
        fog,
        planner=planner_settable(),
        gateway=gateway_settable(),
        catalogue=load_devices().devices,
    )
    settings = _planner_settings(config)
    chosen = choose_planned_model(
        wishes.model,
        wishes.weights or config.gateway.get("weights"),
        config.gateway.get("kv_format"),
        config.gateway.get("kv_transfer"),
    )
    workload = fitted_workload(settings.workload, chosen.spec)
    workload = workload.fitted_to(chosen.spec.context_limit)
    objective = settings.objective
    objective = replace(
        objective,
        ttft_seconds=wishes.ttft_seconds or objective.ttft_seconds,
        tpot_seconds=wishes.tpot_seconds or objective.tpot_seconds,
    )
    problem = Problem(chosen.spec, workload, objective, wishes.seed)
    return PlannedFog(config, chosen, calibrate, problem)


def _planner_settings(config: FogConfig) -> PlannerSettings:
    from broker.settings import read_settings
    from planner.live.settings import PlannerSettings

    given = {f"E2LLM_PLANNER_{key.upper()}": value for key, value in config.planner.items()}
    return read_settings(
        PlannerSettings, "E2LLM_PLANNER_", {"E2LLM_BROKER": "mqtt://127.0.0.1", **given}
    )


def origin_lines(devices: Sequence[DeviceConfig]) -> list[str]:
    """Return where the devices' times are from, for a person who is to trust them."""
    by_sheet = [device for device in devices if not device.is_emulated]
    measured = [device.id for device in devices if device.is_emulated]
    lines = []
    if by_sheet:
        names = ", ".join(
            f"{device.id} ({device.catalogue or 'rates of the file'})" for device in by_sheet
        )
        lines.append(
            f"By data sheet, not measured: {names}. Such times are often 20 to 30 % off, "
            "prefill up to half."
        )
    if measured:
        lines.append(
            f"Measured on this machine and slowed as the file says: {', '.join(measured)}."
        )
    return lines

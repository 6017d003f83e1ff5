"""`e2llm simulate --fog FILE`: what a fog would do with a workload, before and after a change.

Reads files and options, and shows what `planner.whatif` finds. Nothing is started.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fog.changes import Changes, parse_changes
from fog.config import FogConfig, load_config
from fog.hypothetical import (
    Calibrate,
    PlannedModel,
    choose_planned_model,
    device_specs,
    measured_here,
)
from fog.output import write_json
from fog.quantities import format_seconds
from fog.settable import gateway_settable, planner_settable
from fog.tables import plan_view

if TYPE_CHECKING:
    from planner.model import DeviceSpec
    from planner.settings import PlannerSettings
    from planner.whatif.outcomes import Outcome, Problem

DEFAULT_LOAD: Final = 0.7
"""Share of the plan's predicted requests per second that arrives when no rate is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """What the command line says."""

    fog: Path
    cache: Path
    workload: str = "chat"
    model: str | None = None
    weights: str | None = None
    rate: float | None = None
    num_requests: int | None = None
    add: tuple[str, ...] = ()
    lose: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FogFile:
    """A fog file with the model that its devices are to serve.

    Attributes:
        calibrate: This machine's times, for devices that are emulated.
        problem: The workload is that of the file's planner.
    """

    config: FogConfig
    model: PlannedModel
    calibrate: Calibrate
    problem: Problem

    def devices(self, changes: Changes) -> tuple[DeviceSpec, ...]:
        """Return the devices as the planner would know them after ``changes``."""
        return device_specs(
            changes.apply(self.config.devices),
            self.model,
            self.problem.workload.chunk_tokens,
            self.calibrate,
        )


def load_fog(
    fog: Path, model: str | None, weights: str | None, calibrate: Calibrate, seed: int = 0
) -> FogFile:
    """Read a fog file and a model.

    Raises:
        ConfigError: The file is wrong; names line and key.
        ModelChoiceError: The model is.
    """
    from planner.catalogue.devices import load_devices
    from planner.target import fitted_workload
    from planner.whatif.outcomes import Problem

    config = load_config(
        fog,
        planner=planner_settable(),
        gateway=gateway_settable(),
        catalogue=load_devices().devices,
    )
    settings = _planner_settings(config)
    chosen = choose_planned_model(
        model, weights or config.gateway.get("weights"), config.gateway.get("kv_format")
    )
    workload = fitted_workload(settings.workload, chosen.spec)
    workload = workload.fitted_to(chosen.spec.context_limit)
    problem = Problem(chosen.spec, workload, settings.objective, seed)
    return FogFile(config, chosen, calibrate, problem)


def _planner_settings(config: FogConfig) -> PlannerSettings:
    from broker.settings import read_settings
    from planner.settings import PlannerSettings

    given = {f"E2LLM_PLANNER_{key.upper()}": value for key, value in config.planner.items()}
    return read_settings(
        PlannerSettings, "E2LLM_PLANNER_", {"E2LLM_BROKER": "mqtt://127.0.0.1", **given}
    )


def run_simulate(
    options: SimulateOptions,
    json_target: str | None,
    console: Console,
    calibrate: Calibrate | None = None,
) -> None:
    """Plan, simulate and show.

    Raises:
        ConfigError, ModelChoiceError, ChangeError, LoadError: Something is written wrongly.
        InfeasiblePlanError: The model does not fit on the devices.
    """
    from planner.catalogue.devices import load_devices
    from planner.whatif.loads import choose_load, cut_to_context, planned_workload
    from planner.whatif.outcomes import Problem, what_if

    calibrate = calibrate or measured_here(options.cache)
    fog = load_fog(options.fog, options.model, options.weights, calibrate, options.seed)
    load = choose_load(options.workload)
    changes = parse_changes(
        fog.config, load_devices().devices, options.add, options.link, options.lose
    )
    workload = planned_workload(load, fog.problem.workload, fog.model.spec)
    problem = Problem(fog.model.spec, workload, fog.problem.objective, options.seed)
    devices = fog.devices(Changes())
    capacity = problem.plan(devices).predicted.requests_per_second or 0.0
    rate = options.rate or load.trace_rate or DEFAULT_LOAD * capacity
    drawn = load.requests(options.num_requests, rate, options.seed)
    found, num_cut = cut_to_context(drawn, workload.context_tokens)
    before = what_if(problem, devices, found)
    after = None
    if changes:
        losses = [(loss.device, loss.at_seconds) for loss in changes.losses]
        after = what_if(problem, fog.devices(changes), found, losses)
    lines = [
        f"Workload {load.text}; {len(found)} requests, {rate:.3g} per second on average, "
        f"seed {options.seed}. Planned for {workload.prompt_tokens} prompt and "
        f"{workload.answer_tokens} answer tokens, {capacity:.3g} requests per second at most.",
    ]
    if num_cut:
        lines.append(
            f"{num_cut} requests were shortened to the context of {workload.context_tokens} tokens."
        )
    _show(console, lines, changes, before, after)
    write_json(
        json_target,
        {
            "workload": options.workload,
            "requests": len(found),
            "requests_per_second": rate,
            "requests_shortened": num_cut,
            "seed": options.seed,
            "changes": changes.texts(),
            "before": _entry(before),
            "after": None if after is None else _entry(after),
        },
    )


# --- for a person and as JSON -------------------------------------------------------------

_ROWS: Final = (
    ("waiting", "waiting"),
    ("ttft", "TTFT"),
    ("tpot", "TPOT"),
    ("end_to_end", "end to end"),
)
_STATISTICS: Final = ("mean", "p50", "p90", "p99")


def _show(
    console: Console,
    lines: Sequence[str],
    changes: Changes,
    before: Outcome,
    after: Outcome | None,
) -> None:
    for line in lines:
        console.print(line, highlight=False)
    console.print()
    console.print(plan_view(msgspec.to_builtins(before.plan)))
    if after is not None:
        console.print(Text(f"\nAfter: {'; '.join(changes.texts())}", "bold"))
        for title, plan in [("", after.plan), *((f"from {t:.0f} s on", p) for t, p in after.later)]:
            if title or plan != before.plan:
                console.print(Text(title))
                console.print(plan_view(msgspec.to_builtins(plan)))
        for note in after.notes:
            console.print(f"Note: {note}", highlight=False)
    console.print(_metrics_table([before] if after is None else [before, after]))


def _metrics_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("mean / P50 / P90 / P99")
    for name in ("before", "after")[: len(outcomes)]:
        table.add_column(name if len(outcomes) > 1 else "", justify="right")
    summaries = [outcome.summary for outcome in outcomes]
    for attribute, label in _ROWS:
        cells = (
            " / ".join(_seconds(getattr(getattr(s, attribute), name)) for name in _STATISTICS)
            for s in summaries
        )
        table.add_row(label, *cells)
    table.add_row("tokens per second", *(f"{s.tokens_per_second:.3g}" for s in summaries))
    table.add_row("requests per second", *(f"{s.requests_per_second:.3g}" for s in summaries))
    table.add_row("under 7 tokens/s", *(f"{s.below_qos[0]:.0%}" for s in summaries))
    table.add_row("stages busy", *(f"{s.utilisation:.0%}" for s in summaries))
    table.add_row(
        "finished, unfinished, repeated",
        *(f"{s.num_finished}, {s.num_unfinished}, {s.num_retries}" for s in summaries),
    )
    return table


def _seconds(value: float) -> str:
    return "-" if value != value else format_seconds(value)


def _entry(outcome: Outcome) -> dict[str, Any]:
    return {
        "plan": msgspec.to_builtins(outcome.plan),
        "later_plans": [
            {"active_from_seconds": at, "plan": msgspec.to_builtins(plan)}
            for at, plan in outcome.later
        ],
        "notes": list(outcome.notes),
        "metrics": _without_nan(asdict(outcome.summary)),
    }


def _without_nan(value: Any) -> Any:
    """Return JSON values: what does not exist is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value

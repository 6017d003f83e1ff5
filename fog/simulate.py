"""`e2llm simulate --fog FILE`: what a fog would do with a workload, before and after a change.

Plans are those of production (`planner.planning`), and so are late binding, growing KV and the
links between devices in the simulation. Nothing is started.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker.plan import Plan
from fog.changes import Changes, parse_changes
from fog.config import FogConfig, load_config
from fog.hypothetical import (
    Calibrate,
    PlannedModel,
    choose_planned_model,
    device_specs,
    measured_here,
)
from fog.loads import choose_load, cut_to_context, planned_workload
from fog.output import write_json
from fog.quantities import format_seconds
from fog.settable import gateway_settable, planner_settable
from fog.tables import plan_view
from planner.catalogue.devices import load_devices
from planner.model import DeviceSpec, InfeasiblePlanError, Workload
from planner.planning import plan as make_plan
from planner.settings import PlannerSettings
from planner.simulation import (
    DeviceLoss,
    KvReservation,
    PlanChange,
    Scenario,
    SimRequest,
    Summary,
    simulate,
)
from planner.simulation.replicas import kv_bytes_per_token, network_of, replicas_from_plan
from planner.simulation.routing import LATE_BINDING
from planner.target import fitted_workload

DEFAULT_LOAD: Final = 0.7
"""Share of the plan's predicted requests per second that arrives when no rate is given."""

NOTICE_SECONDS: Final = 2.0
"""From a device's end to its requests being queued again: a broken connection makes the broker
publish the last will at once, a silent one only after the keep-alive time."""


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
class Problem:
    """All that planning needs, from a fog file."""

    config: FogConfig
    settings: PlannerSettings
    model: PlannedModel
    workload: Workload
    calibrate: Calibrate

    def specs(self, changes: Changes) -> tuple[DeviceSpec, ...]:
        """Return the devices as the planner would know them after ``changes``."""
        devices = changes.apply(self.config.devices)
        return device_specs(devices, self.model, self.workload.chunk_tokens, self.calibrate)

    def plan(self, devices: Sequence[DeviceSpec], seed: int) -> Plan:
        """Return the plan of production.

        Raises:
            InfeasiblePlanError: The model does not fit; says what is missing.
        """
        return make_plan(devices, self.model.spec, self.workload, self.settings.objective, seed)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A fog under a workload.

    Attributes:
        later: Plans that became active while requests came, with their time.
        notes: What a reader should know.
    """

    plan: Plan
    summary: Summary
    later: tuple[tuple[float, Plan], ...] = ()
    notes: tuple[str, ...] = ()


def load_problem(
    fog: Path, model: str | None, weights: str | None, calibrate: Calibrate
) -> Problem:
    """Read a fog file and a model; the workload is that of the planner's settings.

    Raises:
        ConfigError: The file is wrong; names line and key.
        ModelChoiceError: The model is.
    """
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
    return Problem(
        config, settings, chosen, workload.fitted_to(chosen.spec.context_limit), calibrate
    )


def _planner_settings(config: FogConfig) -> PlannerSettings:
    from broker.settings import read_settings

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
    problem = load_problem(
        options.fog, options.model, options.weights, calibrate or measured_here(options.cache)
    )
    load = choose_load(options.workload)
    changes = parse_changes(
        problem.config, load_devices().devices, options.add, options.link, options.lose
    )
    spec = problem.model.spec
    workload = planned_workload(load, problem.workload, spec)
    problem = Problem(problem.config, problem.settings, problem.model, workload, problem.calibrate)
    devices = problem.specs(Changes())
    plan = problem.plan(devices, options.seed)
    capacity = plan.predicted.requests_per_second or 0.0
    rate = options.rate or load.trace_rate or DEFAULT_LOAD * capacity
    drawn = load.requests(options.num_requests, rate, options.seed)
    found, num_cut = cut_to_context(drawn, workload.context_tokens)
    before = Outcome(plan, _simulated(problem, devices, plan, found, ()))
    after = _changed(problem, changes, found, options.seed) if changes else None
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


def _changed(
    problem: Problem, changes: Changes, found: tuple[SimRequest, ...], seed: int
) -> Outcome:
    """Return what becomes of the same requests in the changed fog."""
    devices = problem.specs(changes)
    plan = problem.plan(devices, seed)
    faults: list[DeviceLoss | PlanChange] = []
    later: list[tuple[float, Plan]] = []
    notes: list[str] = []
    left, running = list(devices), plan
    for index, loss in enumerate(changes.losses):
        left = [device for device in left if device.id != loss.device]
        faults.append(DeviceLoss(loss.at_seconds, loss.device, NOTICE_SECONDS))
        try:
            next_plan = problem.plan(left, seed)
        except InfeasiblePlanError as error:
            notes.append(f"without {loss.device} there is no plan: {error}")
            continue
        ready = loss.at_seconds + NOTICE_SECONDS + _load_seconds(problem, running, next_plan, left)
        following = changes.losses[index + 1 : index + 2]
        if following and following[0].at_seconds <= ready:
            notes.append(f"{following[0].device} is lost before the plan without {loss.device}")
            continue
        faults.append(PlanChange(ready, _sim_replicas(problem, left, next_plan)))
        later.append((ready, next_plan))
        running = next_plan
    last = found[-1].arrival_seconds
    notes += [
        f"{loss.device} is lost after the last request arrived ({last:.0f} s)"
        for loss in changes.losses
        if loss.at_seconds > last
    ]
    summary = _simulated(problem, devices, plan, found, tuple(faults))
    return Outcome(plan, summary, tuple(later), tuple(notes))


def _load_seconds(
    problem: Problem, running: Plan, coming: Plan, devices: Sequence[DeviceSpec]
) -> float:
    """Return how long devices fetch layers that they do not hold, each over its own link."""
    held = _layers(running)
    links = {device.id: device.link.bytes_per_second for device in devices}
    model = problem.model.spec
    seconds = [
        sum(model.block_bytes[layer] for layer in layers - held.get(device, set())) / links[device]
        for device, layers in _layers(coming).items()
    ]
    return max(seconds, default=0.0)


def _layers(plan: Plan) -> dict[str, set[int]]:
    return {
        stage.device: set(range(stage.layers.start, stage.layers.end))
        for replica in plan.replicas
        for stage in replica.stages
    }


def _sim_replicas(problem: Problem, devices: Sequence[DeviceSpec], plan: Plan) -> Any:
    return replicas_from_plan(plan, devices, problem.model.spec, problem.workload)


def _simulated(
    problem: Problem,
    devices: Sequence[DeviceSpec],
    plan: Plan,
    found: tuple[SimRequest, ...],
    faults: tuple[DeviceLoss | PlanChange, ...],
) -> Summary:
    model = problem.model.spec
    scenario = Scenario(
        replicas=_sim_replicas(problem, devices, plan),
        requests=found,
        routing=LATE_BINDING,
        network=network_of(devices),
        kv_bytes_per_token=kv_bytes_per_token(model),
        num_layers=model.num_layers,
        reservation=KvReservation.GROWING,
        faults=faults,
        expected_answer_tokens=float(problem.workload.answer_tokens),
    )
    return simulate(scenario).summary()


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

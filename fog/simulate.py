"""`e2llm simulate --fog FILE`: what a fog would do with a workload, before and after a change.

Reads files and options, and shows what `planner.whatif` finds. Nothing is started.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.text import Text

from fog.changes import ChangeError, Changes, parse_changes
from fog.comparison import Comparison, devices_table, metrics_table, outcome_entry
from fog.hypothetical import Calibrate, measured_here
from fog.output import write_json
from fog.planned_fog import PlannedFog, Wishes, load_fog, origin_lines
from fog.quantities import format_seconds

if TYPE_CHECKING:
    from planner.simulation import SimRequest
    from planner.whatif.loads import Load
    from planner.whatif.outcomes import NextPlan, Outcome, Problem

DEFAULT_LOAD: Final = 0.7
"""Share of the plan's predicted requests per second that arrives when no rate is given."""

_NOTABLY: Final = 1.05
_SAMPLE_SEED: Final = 10_000
_NUM_SAMPLES: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """What the command line says.

    Attributes:
        workload: A name or a CSV file.
        rate: Requests per second; None: a trace's own, or `DEFAULT_LOAD`.
        is_chosen: Compare the planner's plan with the one that simulation would choose.
    """

    fog: Path
    cache: Path
    workload: str = "chat"
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    arrivals: str | None = None
    wishes: Wishes = field(default_factory=Wishes)
    rate: float | None = None
    num_requests: int | None = None
    add: tuple[str, ...] = ()
    lose: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    is_chosen: bool = False


@dataclass(frozen=True, slots=True)
class _Stream:
    """The requests of both simulations.

    Attributes:
        num_cut: Of them so many were shortened to the context.
        rate: Requests per second on average; None: all come at once.
    """

    requests: tuple[SimRequest, ...]
    num_cut: int
    rate: float | None


def run_simulate(
    options: SimulateOptions,
    json_target: str | None,
    console: Console,
    calibrate: Calibrate | None = None,
) -> None:
    """Plan, simulate and show.

    Raises:
        ConfigError, ModelChoiceError, ChangeError, LoadError: Something is written wrongly, or
            a plan is to be chosen while the fog changes.
        InfeasiblePlanError: The model does not fit on the devices.
        OutputError: The JSON file cannot be written.
    """
    from planner import rehearse
    from planner.catalogue.devices import load_devices
    from planner.whatif.loads import choose_load, planned_workload
    from planner.whatif.outcomes import alone, what_if

    calibrate = calibrate or measured_here(options.cache)
    fog = load_fog(options.fog, options.wishes, calibrate)
    load = choose_load(
        options.workload, options.prompt_tokens, options.answer_tokens, options.arrivals
    )
    changes = parse_changes(
        fog.config, load_devices().devices, options.add, options.link, options.lose
    )
    if changes and options.is_chosen:
        raise ChangeError("--choose compares two plans of one fog: leave out --add, --lose, --link")
    workload = planned_workload(load, fog.problem.workload, fog.model.spec)
    problem = replace(fog.problem, workload=workload)
    with console.status("") as status:
        status.update("Measuring this machine, or reading what was measured ...")
        devices = fog.specs(fog.config.devices)
        status.update(f"Planning for {len(devices)} devices ...")
        plan = problem.plan(devices)
        capacity = plan.predicted.requests_per_second or 0.0
        stream = _stream(options, load, capacity, workload.context_tokens)
        status.update(f"Simulating {len(stream.requests)} requests ...")
        before = what_if(problem, devices, stream.requests, plan=plan)
        single = alone(problem, devices, before.plan, stream.requests)
        after = None
        if changes:
            status.update("Planning and simulating again, after the change ...")
            losses = [(loss.device, loss.at_seconds) for loss in changes.losses]
            changed = fog.specs(changes.apply(fog.config.devices))
            after = what_if(problem, changed, stream.requests, losses)
        elif options.is_chosen:
            samples = _samples(options, load, stream, workload.context_tokens)
            status.update(f"Choosing a plan by simulation, on {len(samples)} samples ...")
            chosen = rehearse(
                devices, problem.model, workload, samples, problem.objective, problem.seed
            )
            after = what_if(problem, devices, stream.requests, plan=chosen.plan)
    comparison = Comparison(
        tuple(device.id for device in changes.apply(fog.config.devices)),
        before,
        after,
        single,
        ("planned", "chosen") if options.is_chosen else ("before", "after"),
        frozenset(loss.device for loss in changes.losses),
    )
    for line in _header(options, fog, load, problem, stream, changes):
        console.print(line, highlight=False)
    _show(console, comparison, stream)
    write_json(
        json_target,
        {
            "fog": str(options.fog),
            "model": fog.model.spec.name,
            "weights": fog.model.spec.weights,
            "by_data_sheet": [
                device.id for device in changes.apply(fog.config.devices) if not device.is_emulated
            ],
            "workload": load.name,
            "workload_text": load.text,
            "requests": len(stream.requests),
            "requests_per_second": stream.rate,
            "requests_shortened": stream.num_cut,
            "seed": problem.seed,
            "changes": changes.texts(),
            "before": outcome_entry(before),
            "after": None if after is None or options.is_chosen else outcome_entry(after),
            "chosen": outcome_entry(after) if after is not None and options.is_chosen else None,
            "best_single_device_alone": None if single is None else outcome_entry(single),
        },
    )


def _stream(options: SimulateOptions, load: Load, capacity: float, context_tokens: int) -> _Stream:
    from planner.whatif.loads import cut_to_context

    rate = options.rate or load.trace_rate or DEFAULT_LOAD * capacity
    drawn = load.requests(options.num_requests, rate, options.wishes.seed)
    found, num_cut = cut_to_context(drawn, context_tokens)
    at_once = found[-1].arrival_seconds == 0 and len(found) > 1
    return _Stream(found, num_cut, None if at_once else rate)


def _samples(
    options: SimulateOptions, load: Load, stream: _Stream, context_tokens: int
) -> list[tuple[SimRequest, ...]]:
    """Return what a plan is chosen by: other draws than the one that is shown.

    A trace cannot be drawn again; of it there is one sample.
    """
    from planner.whatif.loads import cut_to_context

    rate = stream.rate or 1.0
    first = options.wishes.seed + _SAMPLE_SEED
    drawn = (
        cut_to_context(load.requests(options.num_requests, rate, seed), context_tokens)[0]
        for seed in range(first, first + _NUM_SAMPLES)
    )
    return list(dict.fromkeys(drawn))


def _header(
    options: SimulateOptions,
    fog: PlannedFog,
    load: Load,
    problem: Problem,
    stream: _Stream,
    changes: Changes,
) -> list[str]:
    """Return what was simulated, in words."""
    model, workload = fog.model.spec, problem.workload
    rate = "all at once" if stream.rate is None else f"{stream.rate:.3g} per second on average"
    if options.rate is None and load.trace_rate is None and stream.rate is not None:
        rate += f" ({DEFAULT_LOAD:.0%} of what the plan can)"
    sent = "" if model.kv_transfer == "exact" else f", sent in {model.kv_transfer}"
    lines = [
        f"Model     {model.name}, {model.weights} weights, {model.kv_format} KV cache{sent}",
        f"Workload  {load.text}",
        f"Requests  {len(stream.requests)}, {rate}, seed {problem.seed}; planned for prompts of "
        f"{workload.prompt_tokens} and answers of {workload.answer_tokens} tokens, at most "
        f"{workload.context_tokens} together",
    ]
    if problem.objective.has_targets:
        lines.append(f"Targets   {_targets_text(problem)}; the plan is for requests within them")
    if stream.num_cut:
        lines.append(
            f"          {stream.num_cut} requests were shortened to {workload.context_tokens} "
            "tokens; a gateway would refuse them"
        )
    lines += [f"Change    {text}" for text in changes.texts()]
    return [*lines, *origin_lines(changes.apply(fog.config.devices))]


def _targets_text(problem: Problem) -> str:
    objective = problem.objective
    targets = (("TTFT", objective.ttft_seconds), ("TPOT", objective.tpot_seconds))
    return ", ".join(
        f"{name} {format_seconds(seconds)}" for name, seconds in targets if seconds is not None
    )


def _show(console: Console, comparison: Comparison, stream: _Stream) -> None:
    console.print()
    console.print(devices_table(comparison))
    lines: list[str] = []
    for title, outcome in comparison.columns:
        if outcome is not comparison.alone:
            known = {line.partition(": ")[2] for line in lines}
            lines += [
                line
                for line in (*_plan_lines(title, outcome), *_overload(title, outcome, stream))
                # What was so before the change need not be read again.
                if line.partition(": ")[2] not in known
            ]
    lines += _slower(comparison)
    for line in lines:
        console.print(Text(line))
    console.print(metrics_table(comparison))


def _plan_lines(title: str, outcome: Outcome) -> Sequence[str]:
    lines = [f"{title}: {outcome.plan.optimality}"]
    lines += [f"{title}: {entry.device} is not used: {entry.reason}" for entry in outcome.plan.idle]
    lines += [
        f"from {following.active_from_seconds:.0f} s on: a new plan of "
        f"{following.plan.predicted.requests_per_second or 0.0:.3g} requests per second, "
        + (
            f"when {following.slowest} has fetched its layers "
            f"({format_seconds(following.load_seconds)}); "
            f"until then {_until_then(following)}"
            if following.slowest is not None
            else "at once: all devices hold their layers already"
        )
        for following in outcome.later
    ]
    lines += [f"Note: {note}" for note in outcome.notes]
    if outcome.summary.num_unfinished:
        lines.append(
            f"Note: {title}, times are those of the {outcome.summary.num_finished} requests that "
            f"finish; {outcome.summary.num_unfinished} never do."
        )
    return lines


def _until_then(following: NextPlan) -> str:
    """Return who serves while a new plan's devices fetch their layers."""
    if not following.missing:
        return "those that are left serve"
    if len(following.missing) > 1:
        return "nobody serves"
    return f"no request ends, as no replica is left for {following.missing[0]}"


def _overload(title: str, outcome: Outcome, stream: _Stream) -> list[str]:
    """Return a note when more comes than the plan serves: then waiting has no bound."""
    if stream.rate is None:
        return []
    plans = [(title, outcome.plan)]
    plans += [(f"from {p.active_from_seconds:.0f} s on", p.plan) for p in outcome.later]
    rates = [(name, plan.predicted.requests_per_second or 0.0) for name, plan in plans]
    return [
        f"Note: {name}, {stream.rate:.3g} requests per second are more than the plan's "
        f"{most:.3g}: the longer they come, the longer they wait."
        for name, most in rates
        if stream.rate > most
    ]


def _slower(comparison: Comparison) -> list[str]:
    """Return a note when requests take longer than on the best single device by itself.

    A plan promises not to serve fewer requests than that device; under less than full load a
    single fast device may still finish each of them sooner.
    """
    if comparison.alone is None:
        return []
    fog, alone = (o.summary.end_to_end.mean for o in (comparison.before, comparison.alone))
    if not fog > alone * _NOTABLY:
        return []
    title = comparison.columns[-1][0]
    return [
        f"Note: at this load requests take {format_seconds(fog)}, and {format_seconds(alone)} on "
        f"{title}: the fog serves more of them at full load, not each one sooner. A target "
        "changes that, as in --ttft 2s."
    ]

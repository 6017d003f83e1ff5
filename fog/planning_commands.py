"""The subcommands of `e2llm` that plan and simulate; none of them starts or changes a fog."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from fog.account import connect
from fog.client import FogClient
from fog.options import (
    EXIT_FAILED,
    EXIT_USAGE,
    AnswerTokensOption,
    JsonOption,
    KeyOption,
    NumRequestsOption,
    PlannedModelOption,
    PromptTokensOption,
    UrlOption,
    WeightsOption,
    WorkloadOption,
    check_rate,
    give_up,
    parse_target,
)
from fog.output import make_console, write_json

_PAPER_SEEDS: Final = 200


TtftOption = Annotated[
    float | None,
    typer.Option(
        "--ttft",
        metavar="TIME",
        parser=parse_target,
        help="Plan for the requests that get their first token within this time, as in 2s; "
        "default: that of [planner] in the file.",
    ),
]
TpotOption = Annotated[
    float | None,
    typer.Option(
        "--tpot",
        metavar="TIME",
        parser=parse_target,
        help="The same for the time of each further token, as in 150ms.",
    ),
]
MeasuredOption = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="DIR",
        help="State folder of a fog that has measured this machine; default: that of port 8080.",
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Same seed, same requests and same plan.")
]


def plan(
    url: UrlOption = None,
    api_key: KeyOption = None,
    fog: Annotated[
        Path | None,
        typer.Option("--fog", metavar="FILE", help="Plan these devices; no fog needs to run."),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="With --fog: why each device got its place or none, what the fog would do "
            "without it, and a comparison with the best single device.",
        ),
    ] = False,
    history: Annotated[
        bool,
        typer.Option(
            "--history",
            help="What the planner of the running fog decided lately: what had changed, which "
            "plans it compared, and why one was adopted or not.",
        ),
    ] = False,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if",
            metavar="CHANGE",
            help="What the planner of the running fog would plan; nothing moves. drop=ID, "
            "slow=ID:FACTOR, or add=DEVICE with one of `e2llm catalogue` or of the fog. May be "
            "repeated.",
        ),
    ] = None,
    model: PlannedModelOption = None,
    weights: WeightsOption = None,
    ttft: TtftOption = None,
    tpot: TpotOption = None,
    state: MeasuredOption = None,
    seed: SeedOption = 0,
    json_target: JsonOption = None,
) -> None:
    """Show which device holds which layers, running or planned (--fog)."""
    from fog.tables import plan_view

    for name, is_given in (("--history", history), ("--what-if", bool(what_if))):
        if is_given and (fog is not None or explain):
            give_up(f"e2llm: {name} is about a running fog, without --fog", EXIT_USAGE)

    if fog is not None:
        with planning_errors():
            from fog.explain import run_explain
            from fog.hypothetical import measured_here
            from fog.planned_fog import Wishes, load_fog

            wishes = Wishes(model, weights, ttft, tpot, seed)
            found = load_fog(fog, wishes, measured_here(_cache(state)))
            run_explain(found, json_target, make_console(json_target), is_explained=explain)
        return
    if explain or any(given is not None for given in (model, weights, ttft, tpot)):
        give_up(
            "e2llm: --explain, --model, --weights, --ttft and --tpot need --fog FILE", EXIT_USAGE
        )
    client = connect(url, api_key)
    if what_if:
        _show_supposed(client, what_if, json_target)
        return
    if history:
        from fog.history import history_view

        decisions = client.plan_history()
        write_json(json_target, decisions)
        if json_target is None:
            make_console().print(history_view(decisions))
        return
    current = client.plan()
    write_json(json_target, current)
    if json_target is None:
        console = make_console()
        if not current.get("replicas"):
            console.print(f"No plan yet: {client.readiness().reason}", highlight=False)
            raise typer.Exit(EXIT_FAILED)
        console.print(plan_view(current))


def _show_supposed(client: FogClient, changes: list[str], json_target: str | None) -> None:
    from fog import suppositions

    try:
        is_possible = suppositions.run(client, changes, json_target, make_console(json_target))
    except suppositions.SuppositionError as error:
        give_up(f"e2llm: {error}", EXIT_USAGE)
    if not is_possible:
        raise typer.Exit(EXIT_FAILED)


def simulate(
    fog: Annotated[
        Path | None, typer.Option("--fog", metavar="FILE", help="Devices to simulate.")
    ] = None,
    model: PlannedModelOption = None,
    weights: WeightsOption = None,
    workload: WorkloadOption = "chat",
    prompt_tokens: PromptTokensOption = None,
    answer_tokens: AnswerTokensOption = None,
    arrivals: Annotated[
        str | None,
        typer.Option(
            "--arrivals",
            metavar="KIND",
            help="poisson, fixed, bursty, or bursty:CV with the gaps' coefficient of variation, "
            "instead of the workload's.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            metavar="NUMBER",
            callback=check_rate,
            help="Requests per second; default: 70 % of what the plan can, or a trace's own.",
        ),
    ] = None,
    num_requests: NumRequestsOption = None,
    add: Annotated[
        list[str] | None,
        typer.Option(
            "--add",
            metavar="ID:DEVICE",
            help="What if there were this device too? DEVICE is of `e2llm catalogue` or of the "
            "file. May be repeated, as may --lose and --link.",
        ),
    ] = None,
    lose: Annotated[
        list[str] | None,
        typer.Option("--lose", metavar="ID@TIME", help="What if it stopped, as in pi@5min?"),
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(
            "--link",
            metavar="ID:DELAY,RATE",
            help="What if its one-way delay or rate were these, as in pi:20ms,50Mbit/s? The id "
            "`all` means every device.",
        ),
    ] = None,
    choose: Annotated[
        bool,
        typer.Option(
            "--choose",
            help="Show beside the planner's plan the one that simulation chooses for these "
            "requests, out of many; takes up to minutes.",
        ),
    ] = False,
    ttft: TtftOption = None,
    tpot: TpotOption = None,
    state: MeasuredOption = None,
    seed: SeedOption = 0,
    json_target: JsonOption = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Instead: the E2LLM paper's evaluation beside ours.")
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, help="With --paper: runs of each cell (default: 200)."),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="DIR", help="With --paper: draw figures.")
    ] = None,
) -> None:
    """Answer "what if" about a fog, without starting one.

    Says what the devices of a fog file would do with a workload, before and after a change, by
    the planner and the cost model of a running fog. Emulated devices have this machine's
    measured times, devices of the catalogue those of a data sheet.
    """
    console = make_console(json_target)
    if paper and fog is not None:
        give_up("e2llm: simulate takes --fog FILE or --paper, not both", EXIT_USAGE)
    if not paper and (seeds is not None or figures is not None):
        name = "--figures" if seeds is None else "--seeds"
        give_up(f"e2llm: {name} goes with --paper, not with a fog", EXIT_USAGE)
    if not paper and fog is None:
        from fog.config import DEFAULT_FOG

        give_up(
            "e2llm: simulate needs either --fog FILE or --paper; the default fog is "
            f"--fog {DEFAULT_FOG}",
            EXIT_USAGE,
        )
    if fog is None:
        from fog.paper import run_paper

        run_paper(_PAPER_SEEDS if seeds is None else seeds, json_target, figures, console)
        return
    with planning_errors():
        from fog.planned_fog import Wishes
        from fog.simulate import SimulateOptions, run_simulate

        options = SimulateOptions(
            fog=fog,
            cache=_cache(state),
            workload=workload,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            arrivals=arrivals,
            wishes=Wishes(model, weights, ttft, tpot, seed),
            rate=rate,
            num_requests=num_requests,
            add=tuple(add or ()),
            lose=tuple(lose or ()),
            link=tuple(link or ()),
            is_chosen=choose,
        )
        run_simulate(options, json_target, console)


def catalogue(json_target: JsonOption = None) -> None:
    """List devices and models that are known by data sheet."""
    from fog.catalogue import run_catalogue

    run_catalogue(json_target, make_console(json_target))


def _cache(state: Path | None) -> Path:
    """Return where measurements of this machine are, or will be."""
    from fog.state import StateFolder, default_state

    folder = StateFolder(state) if state is not None else default_state(8080, os.environ)
    return folder.cache


@contextmanager
def planning_errors() -> Iterator[None]:
    """End in one line when the input is wrong, or the model fits on no devices."""
    from fog.changes import ChangeError
    from fog.model_choice import ModelChoiceError
    from fog.tomlreader import ConfigError
    from planner.model import InfeasiblePlanError
    from planner.whatif.loads import LoadError

    try:
        yield
    except (ConfigError, ModelChoiceError, ChangeError, LoadError) as error:
        give_up(f"e2llm: {error}", EXIT_USAGE)
    except InfeasiblePlanError as error:
        give_up(f"e2llm: there is no plan: {error}", EXIT_FAILED)

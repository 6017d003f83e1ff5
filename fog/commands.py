"""The subcommands of `e2llm`: options in, one function of another module each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Final

import typer

from fog.cli import missing_module_text
from fog.client import DEFAULT_URL, FogClient, FogRequestError, FogUnreachableError
from fog.options import (
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    JsonOption,
    PlannedModelOption,
    UrlOption,
    WeightsOption,
    give_up,
)
from fog.output import make_console, write_json
from fog.workshop import make_model

CHAT_TIMEOUT_SECONDS: Final = 600.0
"""Silence after which a chat gives up: a large model on slow devices takes its time."""

app = typer.Typer(
    name="e2llm",
    help="LLM serving over a fog of unequal devices, on MQTT.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


app.command("make-model")(make_model)


def _check_prompt(prompt: str | None) -> str | None:
    """Refuse an empty question, for example from a shell variable that is not set."""
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter("the prompt is empty; write what the fog shall answer")
    return prompt


def run() -> None:
    """Run the command line and exit; what a person can mend gets one line."""
    try:
        app()
    except ModuleNotFoundError as error:
        give_up(missing_module_text(error), EXIT_FAILED)
    except FogUnreachableError as error:
        give_up(f"e2llm: {error}", EXIT_UNREACHABLE)
    except FogRequestError as error:
        give_up(f"e2llm: the fog refused: {error}", EXIT_FAILED)


@app.callback(invoke_without_command=True)
def root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """LLM serving over a fog of unequal devices, on MQTT."""
    if show_version:
        try:
            print(f"e2llm {version('e2llm')}")
        except PackageNotFoundError:
            print("e2llm (not installed)")
        raise typer.Exit


@app.command()
def up(
    fog: Annotated[
        Path | None, typer.Option("--fog", metavar="FILE", help="Devices; default: six of them.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="FOLDER_OR_HUB_ID",
            help="Model to serve; default: the small one in the package.",
        ),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option("--model-name", help="Name that requests use for the model.")
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="HTTP port on 127.0.0.1.")
    ] = 8080,
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="DIR", help="State and logs; default: one per port."),
    ] = None,
    once: Annotated[
        str | None,
        typer.Option(
            "--once",
            metavar="PROMPT",
            help="Answer this, then stop everything.",
            callback=_check_prompt,
        ),
    ] = None,
    json_target: JsonOption = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Longest answer to the first question.")
    ] = 64,
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=1, help="Seconds without progress before giving up."),
    ] = 180.0,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the logs of all processes.")
    ] = False,
) -> None:
    """Start a whole fog on this machine: broker, Redis, planner, gateway and devices."""
    from fog.config import DEFAULT_FOG, ConfigError
    from fog.model_choice import DemoModelMissingError, ModelChoiceError
    from fog.ports import PortBusyError
    from fog.preparation import UpOptions
    from fog.processes import ProcessFailedError
    from fog.redis_server import RedisMissingError
    from fog.state import StateError
    from fog.up import FogNotReadyError, run_up

    options = UpOptions(
        fog=fog or DEFAULT_FOG,
        state=state,
        port=port,
        model=model,
        model_name=model_name,
        once=once,
        json_target=json_target,
        max_tokens=max_tokens,
        timeout_seconds=timeout,
        verbose=verbose,
    )
    try:
        exit_code = run_up(options, make_console(json_target))
    except (ConfigError, ModelChoiceError) as error:
        give_up(f"e2llm: {error}", EXIT_USAGE)
    except (
        DemoModelMissingError,
        PortBusyError,
        StateError,
        RedisMissingError,
        ProcessFailedError,
        FogNotReadyError,
    ) as error:
        give_up(f"e2llm: {error}", EXIT_FAILED)
    raise typer.Exit(exit_code)


@app.command()
def chat(
    url: UrlOption = DEFAULT_URL,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=2, help="0 is greedy.")
    ] = 0.0,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Longest answer.")
    ] = None,
) -> None:
    """Talk to a running fog."""
    from fog.chat import run_chat

    client = FogClient(url, timeout_seconds=CHAT_TIMEOUT_SECONDS)
    run_chat(client, make_console(), temperature=temperature, max_tokens=max_tokens)


@app.command()
def plan(
    url: UrlOption = DEFAULT_URL,
    fog: Annotated[
        Path | None,
        typer.Option("--fog", metavar="FILE", help="Plan these devices; no fog needs to run."),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="With --fog: why each device got its place or none."),
    ] = False,
    model: PlannedModelOption = None,
    weights: WeightsOption = None,
    state: Annotated[Path | None, typer.Option("--state", metavar="DIR")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the genetic algorithm.")] = 0,
    json_target: JsonOption = None,
) -> None:
    """Show which device holds which layers, and what that predicts and measures."""
    from fog.tables import plan_view

    if fog is not None:
        with _planning_errors():
            from fog.explain import run_explain
            from fog.hypothetical import measured_here
            from fog.simulate import load_fog

            found = load_fog(fog, model, weights, measured_here(_cache(state)), seed)
            run_explain(found, json_target, make_console(json_target), is_explained=explain)
        return
    if explain:
        give_up("e2llm: --explain needs --fog FILE", EXIT_USAGE)
    client = FogClient(url)
    current = client.plan()
    write_json(json_target, current)
    if json_target is None:
        console = make_console()
        if not current.get("replicas"):
            console.print(f"No plan yet: {client.readiness().reason}", highlight=False)
            raise typer.Exit(EXIT_FAILED)
        console.print(plan_view(current))


@app.command()
def devices(url: UrlOption = DEFAULT_URL, json_target: JsonOption = None) -> None:
    """Show the devices of a running fog."""
    from fog.tables import devices_table

    current = FogClient(url).devices()
    write_json(json_target, current)
    if json_target is None:
        make_console().print(devices_table(current))


@app.command()
def doctor(
    fog: Annotated[Path | None, typer.Option("--fog", metavar="FILE")] = None,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="HTTP port that `up` would use.")
    ] = 8080,
    state: Annotated[Path | None, typer.Option("--state", metavar="DIR")] = None,
    json_target: JsonOption = None,
) -> None:
    """Say what this machine lacks for a local fog, and how to get it."""
    from fog.config import DEFAULT_FOG
    from fog.doctor import Level, examine, findings_table
    from fog.state import StateFolder, default_state

    folder = StateFolder(state) if state is not None else default_state(port, os.environ)
    findings = examine(fog or DEFAULT_FOG, port, folder)
    write_json(json_target, [finding.as_json() for finding in findings])
    if json_target is None:
        make_console().print(findings_table(findings))
    if any(finding.level is Level.FAIL for finding in findings):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def simulate(
    paper: Annotated[
        bool, typer.Option("--paper", help="The E2LLM paper's evaluation beside ours.")
    ] = False,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="With --paper: runs of each cell.")
    ] = 200,
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="DIR", help="With --paper: draw figures.")
    ] = None,
    fog: Annotated[
        Path | None, typer.Option("--fog", metavar="FILE", help="Devices to simulate.")
    ] = None,
    model: PlannedModelOption = None,
    weights: WeightsOption = None,
    workload: Annotated[
        str,
        typer.Option(
            "--workload",
            metavar="NAME_OR_CSV",
            help="extended, custom, chat, azure-code, azure-conversation, or a CSV file of "
            "arrival seconds, prompt tokens, answer tokens.",
        ),
    ] = "chat",
    rate: Annotated[
        float | None,
        typer.Option("--rate", min=1e-6, help="Requests per second; default: 70 % of the plan's."),
    ] = None,
    num_requests: Annotated[
        int | None, typer.Option("--requests", min=1, help="How many; default: 100.")
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option("--add", metavar="ID:DEVICE", help="What if there were this device too?"),
    ] = None,
    lose: Annotated[
        list[str] | None,
        typer.Option("--lose", metavar="ID@TIME", help="What if it stopped, as in pi@300s?"),
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option("--link", metavar="ID:DELAY,RATE", help="As in pi:20ms,50Mbit/s."),
    ] = None,
    state: Annotated[Path | None, typer.Option("--state", metavar="DIR")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of requests and planner.")] = 0,
    json_target: JsonOption = None,
) -> None:
    """Answer "what if" without a fog: with your devices, or with the paper's."""
    console = make_console(json_target)
    if paper == (fog is not None):
        give_up("e2llm: simulate needs either --fog FILE or --paper", EXIT_USAGE)
    if fog is None:
        from fog.paper import run_paper

        run_paper(seeds, json_target, figures, console)
        return
    with _planning_errors():
        from fog.simulate import SimulateOptions, run_simulate

        options = SimulateOptions(
            fog=fog,
            cache=_cache(state),
            workload=workload,
            model=model,
            weights=weights,
            rate=rate,
            num_requests=num_requests,
            add=tuple(add or ()),
            lose=tuple(lose or ()),
            link=tuple(link or ()),
            seed=seed,
        )
        run_simulate(options, json_target, console)


def _cache(state: Path | None) -> Path:
    """Return where measurements of this machine are, or will be."""
    from fog.state import StateFolder, default_state

    folder = StateFolder(state) if state is not None else default_state(8080, os.environ)
    return folder.cache


@contextmanager
def _planning_errors() -> Iterator[None]:
    """End in one line when the input is wrong, or the model fits on no devices."""
    from fog.changes import ChangeError
    from fog.config import ConfigError
    from fog.model_choice import ModelChoiceError
    from planner.model import InfeasiblePlanError
    from planner.whatif.loads import LoadError

    try:
        yield
    except (ConfigError, ModelChoiceError, ChangeError, LoadError) as error:
        give_up(f"e2llm: {error}", EXIT_USAGE)
    except InfeasiblePlanError as error:
        give_up(f"e2llm: there is no plan: {error}", EXIT_FAILED)

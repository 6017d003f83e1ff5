"""The subcommands of `e2llm`: options in, one function of another module each."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Final

import typer

from fog import access_commands, planning_commands
from fog.account import AccountError, connect, key_advice
from fog.address import AddressError
from fog.chaos.command import chaos
from fog.cli import missing_module_text
from fog.client import FogRequestError, FogUnreachableError
from fog.device_commands import device
from fog.model_commands import model as model_app
from fog.node_commands import node
from fog.options import (
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    HeldWeightsOption,
    JsonOption,
    KeyOption,
    StateOption,
    UrlOption,
    give_up,
)
from fog.output import OutputError, make_console, write_json
from fog.workshop import bench, make_model

CHAT_TIMEOUT_SECONDS: Final = 600.0
"""Silence after which a chat gives up: a large model on slow devices takes its time."""
UNAUTHORIZED: Final = 401

app = typer.Typer(
    name="e2llm",
    help="LLM serving over a fog of unequal devices, on MQTT.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


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
        advice = f"; {key_advice(os.environ)}" if error.status == UNAUTHORIZED else ""
        give_up(f"e2llm: the fog refused: {error}{advice}", EXIT_FAILED)
    except (AccountError, AddressError) as error:
        give_up(f"e2llm: {error}", EXIT_USAGE)
    except OutputError as error:
        give_up(f"e2llm: {error}", EXIT_FAILED)


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
            metavar="MODEL",
            help="A folder, a GGUF file or a hub id; default: the small model in the package.",
        ),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option("--model-name", help="Name that requests use for the model.")
    ] = None,
    weights: HeldWeightsOption = None,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="HTTP port on 127.0.0.1.")
    ] = 8080,
    state: StateOption = None,
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
    with_chaos: Annotated[
        bool, typer.Option("--chaos", help="Let `e2llm chaos` cut and slow devices.")
    ] = False,
) -> None:
    """Start a whole fog on this machine: broker, Redis, planner, gateway and devices."""
    from fog.config import DEFAULT_FOG
    from fog.model_choice import DemoModelMissingError, ModelChoiceError
    from fog.ports import PortBusyError
    from fog.preparation import UpOptions
    from fog.processes import ProcessFailedError
    from fog.redis_server import RedisMissingError
    from fog.state import StateError
    from fog.tomlreader import ConfigError
    from fog.up import FogNotReadyError, run_up

    options = UpOptions(
        fog=fog or DEFAULT_FOG,
        state=state,
        port=port,
        model=model,
        model_name=model_name,
        weights=weights,
        once=once,
        json_target=json_target,
        max_tokens=max_tokens,
        timeout_seconds=timeout,
        verbose=verbose,
        chaos=with_chaos,
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
    url: UrlOption = None,
    api_key: KeyOption = None,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=2, help="0 is greedy.")
    ] = 0.0,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Longest answer.")
    ] = None,
    json_target: JsonOption = None,
) -> None:
    """Talk to a running fog."""
    from fog.chat import run_chat

    client = connect(url, api_key, timeout_seconds=CHAT_TIMEOUT_SECONDS)
    is_typed = sys.stdin.isatty()
    conversation = run_chat(
        client,
        make_console(json_target),
        temperature=temperature,
        max_tokens=max_tokens,
        # `input` shows its prompt on standard output, where a script wants the JSON alone.
        read_line=input if is_typed else lambda prompt: input(),
    )
    write_json(json_target, conversation.turns)
    # A person has seen it and went on; a script has only the exit code.
    if conversation.num_refused and not is_typed:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def devices(
    url: UrlOption = None, api_key: KeyOption = None, json_target: JsonOption = None
) -> None:
    """Show the devices of a running fog."""
    from fog.tables import devices_table

    current = connect(url, api_key).devices()
    write_json(json_target, current)
    if json_target is None:
        make_console().print(devices_table(current))


@app.command()
def requests(
    url: UrlOption = None, api_key: KeyOption = None, json_target: JsonOption = None
) -> None:
    """Show the requests of a gateway: those that run, and the latest that ended."""
    from fog.access_tables import requests_table

    found = connect(url, api_key).requests()
    write_json(json_target, found)
    if json_target is None:
        make_console().print(requests_table(found))


@app.command()
def doctor(
    fog: Annotated[
        Path | None, typer.Option("--fog", metavar="FILE", help="Devices; default: six of them.")
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="HTTP port that `up` would use.")
    ] = 8080,
    state: StateOption = None,
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
def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print a script with which a shell completes this command.

    bash and zsh: source <(e2llm completion bash); fish: e2llm completion fish | source.
    """
    from fog.command_tree import command_tree
    from fog.completion import SCRIPTS

    if shell not in SCRIPTS:
        give_up(f"e2llm: {shell}: use {', '.join(SCRIPTS)}", EXIT_USAGE)
    print(SCRIPTS[shell](command_tree(app)), end="")


app.command()(chaos)
app.command()(planning_commands.plan)
app.command()(planning_commands.simulate)
app.command()(planning_commands.catalogue)
app.command("make-model")(make_model)
app.add_typer(bench, name="bench")
app.add_typer(device, name="device")
app.add_typer(access_commands.key, name="key")
app.add_typer(access_commands.token, name="token")
app.add_typer(node, name="node")
app.add_typer(model_app, name="model")

"""The command `e2llm chaos`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from fog.client import URL_VARIABLE
from fog.options import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    HeldWeightsOption,
    JsonOption,
    KeyOption,
    give_up,
)
from fog.output import make_console, write_json

DEFAULT_SCENARIO: Final = "short"


def chaos(
    scenario: Annotated[
        str,
        typer.Argument(metavar="SCENARIO", help="A file, or one that ships: short, alone or soak."),
    ] = DEFAULT_SCENARIO,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="In place of the scenario's.")
    ] = None,
    fog: Annotated[
        Path | None, typer.Option("--fog", metavar="FILE", help="Devices; default: six of them.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="A folder, a GGUF file or a hub id."),
    ] = None,
    weights: HeldWeightsOption = None,
    url: Annotated[
        str | None,
        typer.Option("--url", envvar=URL_VARIABLE, help="A fog that runs already, with --state."),
    ] = None,
    api_key: KeyOption = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="DIR", help="State folder of its `e2llm up --chaos`."),
    ] = None,
    compose: Annotated[
        Path | None,
        typer.Option("--compose", metavar="DIR", help="Folder of a compose file that is up."),
    ] = None,
    json_target: JsonOption = None,
) -> None:
    """Kill, freeze, cut and slow parts of a fog while a load runs; check every answer.

    Ends with 1 when a request was lost or an answer is wrong. Ctrl-C ends the faults, lets the
    answers that run come to their end, and reports what there is.
    """
    from fog.chaos.run import SCENARIOS, ChaosError, ChaosOptions, run_chaos
    from fog.chaos.scenario import load_scenario
    from fog.client import DEFAULT_URL
    from fog.config import DEFAULT_FOG
    from fog.quantities import suggest
    from fog.tomlreader import ConfigError

    shipped = {path.stem: path for path in SCENARIOS.glob("*.toml")}
    path = shipped.get(scenario, Path(scenario))
    if not path.exists():
        ways = suggest(scenario, list(shipped))
        give_up(f"e2llm: {scenario}: no such file, and no scenario that ships{ways}", EXIT_USAGE)
    attached = state is not None or compose is not None
    if state is not None and compose is not None:
        give_up("e2llm: --state and --compose name two fogs; give one of them", EXIT_USAGE)
    console = make_console(json_target)
    try:
        options = ChaosOptions(
            scenario=load_scenario(path, seed=seed),
            url=(url or DEFAULT_URL) if attached else None,
            key=api_key if attached else None,
            state=state,
            compose=compose,
            fog=fog or DEFAULT_FOG,
            model=model,
            weights=weights,
        )
        report = run_chaos(options, console)
    except ConfigError as error:
        give_up(f"e2llm: {error}", EXIT_USAGE)
    except ChaosError as error:
        give_up(f"e2llm: {error}", EXIT_FAILED)
    write_json(json_target, report.as_json())
    console.print(report.table())
    if report.problems:
        give_up(f"e2llm: {'; '.join(report.problems)}", EXIT_FAILED)
    if report.is_interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)

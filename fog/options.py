"""Options that several subcommands share, and how a command ends. Exit codes: see `fog.cli`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from broker.architecture import WEIGHT_FORMATS
from fog.client import DEFAULT_URL, KEY_VARIABLE, URL_VARIABLE
from fog.output import target_problem
from fog.quantities import parse_seconds

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_INTERRUPTED: Final = 130

_RATES: Final = (1e-6, 1e6)
"""Below, seconds since the start are too coarse; above, all requests come at once."""


def _check_json_target(target: str | None) -> str | None:
    """Refuse a file that cannot be written now, not after a fog has run for it."""
    if problem := target_problem(target):
        raise typer.BadParameter(problem)
    return target


def _check_weights(weights: str | None) -> str | None:
    """Refuse a format that no node has, before anything is started."""
    if weights is not None and weights not in WEIGHT_FORMATS:
        raise typer.BadParameter(f"{weights!r} is unknown; use {', '.join(WEIGHT_FORMATS)}")
    return weights


def check_rate(rate: float | None) -> float | None:
    """Refuse what is no rate; typer's own range lets "nan" pass."""
    if rate is not None and not _RATES[0] <= rate <= _RATES[1]:
        raise typer.BadParameter(
            f"{rate:g} is not a rate; use requests per second between {_RATES[0]:g} and "
            f"{_RATES[1]:g}, as in 0.5"
        )
    return rate


def parse_target(text: str) -> float:
    """Return a target in seconds from ``2s`` or ``150ms``."""
    try:
        seconds = parse_seconds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if seconds == 0:
        raise typer.BadParameter(f"{text!r} is not greater than 0")
    return seconds


UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar=URL_VARIABLE,
        help=f"Address of the fog's gateway; default: that of the configuration, or {DEFAULT_URL}.",
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar=KEY_VARIABLE,
        help="API key, where the gateway needs one; others see it in the list of processes, "
        "unless it comes from the environment or the configuration.",
    ),
]
JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the result as JSON; '-' is stdout.",
        callback=_check_json_target,
    ),
]
StateOption = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="State and logs; default: one per port."),
]

PlannedModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FOLDER_OR_NAME",
        help="Model folder, or a model of `e2llm catalogue`; default: the small one in the "
        "package.",
    ),
]
HeldWeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help=f"How nodes hold weights: {', '.join(WEIGHT_FORMATS)}; default: float32.",
        callback=_check_weights,
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FORMAT",
        help="float32, bfloat16, int8, int4 or mxfp4; default: that of [gateway] in the file.",
    ),
]
WorkloadOption = Annotated[
    str,
    typer.Option(
        "--workload",
        metavar="NAME_OR_CSV",
        help="chat, extended, custom, azure-code, azure-conversation, or a CSV file of "
        "arrival seconds, prompt tokens, answer tokens.",
    ),
]
PromptTokensOption = Annotated[
    int | None,
    typer.Option("--prompt-tokens", min=1, help="Mean prompt instead of the workload's."),
]
AnswerTokensOption = Annotated[
    int | None,
    typer.Option("--answer-tokens", min=1, help="Mean answer instead of the workload's."),
]
NumRequestsOption = Annotated[
    int | None,
    typer.Option(
        "--requests", min=1, max=1_000_000, help="How many; default: 100, or a whole trace."
    ),
]


def give_up(message: str, exit_code: int) -> NoReturn:
    """End with one line on standard error."""
    print(message, file=sys.stderr)
    sys.exit(exit_code)

"""Options that several subcommands share, and how a command ends. Exit codes: see `fog.cli`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from fog.client import URL_VARIABLE
from fog.output import target_problem

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3


def _check_json_target(target: str | None) -> str | None:
    """Refuse a file that cannot be written now, not after a fog has run for it."""
    if problem := target_problem(target):
        raise typer.BadParameter(problem)
    return target


UrlOption = Annotated[
    str,
    typer.Option("--url", envvar=URL_VARIABLE, help="Address of the fog's gateway."),
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
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FORMAT",
        help="float32, bfloat16, int8, int4 or mxfp4; default: that of [gateway] in the file.",
    ),
]


def give_up(message: str, exit_code: int) -> NoReturn:
    """End with one line on standard error."""
    print(message, file=sys.stderr)
    sys.exit(exit_code)

"""Options that several subcommands share, and how a command ends. Exit codes: see `fog.cli`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from fog.client import URL_VARIABLE
from fog.output import STDOUT

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3


def _check_json_target(target: str | None) -> str | None:
    """Refuse a file that cannot be written now, not after a fog has run for it."""
    if target not in (None, STDOUT) and not Path(target).absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder of {target} does not exist")
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

PlannedModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FOLDER_OR_NAME",
        help="Model folder, or a name of the catalogue such as gpt-oss-20b.",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", help="float32, bfloat16, int8, int4 or mxfp4."),
]


def give_up(message: str, exit_code: int) -> NoReturn:
    """End with one line on standard error."""
    print(message, file=sys.stderr)
    sys.exit(exit_code)

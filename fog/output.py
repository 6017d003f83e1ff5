"""``--json FILE``: one JSON object into a file, or to standard output for ``-``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from rich.console import Console

STDOUT: Final = "-"


class OutputError(Exception):
    """A result cannot be written; names the file and why."""


def target_problem(target: str | None) -> str | None:
    """Return why ``--json`` could not be written, before any work is done for it; or None."""
    if target in (None, STDOUT):
        return None
    path = Path(str(target)).absolute()
    if not path.parent.is_dir():
        return f"the folder of {target} does not exist"
    if path.is_dir():
        return f"{target} is a folder"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"{target} cannot be written: permission denied"
    return None


PIPE_COLUMNS: Final = 120
"""Width of tables that go into a file or a pipe, which cannot say how wide they are."""


def make_folder(path: Path) -> None:
    """Make a folder for results, before any work is done for them.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {path} cannot be made: {error.strerror}") from error


def make_console(json_target: str | None = None) -> Console:
    """Return where people are talked to: standard error when standard output is JSON."""
    console = Console(stderr=json_target == STDOUT)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_COLUMNS
    return console


def write_json(target: str | None, value: Any) -> None:
    """Write ``value`` as one object with a line end; do nothing without a target.

    Raises:
        OutputError: The file cannot be written.
    """
    if target is None:
        return
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    if target == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        try:
            Path(target).write_text(text, "utf-8")
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror}") from error

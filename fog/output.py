"""``--json FILE``: one JSON object into a file, or to standard output for ``-``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from rich.console import Console

STDOUT: Final = "-"


PIPE_COLUMNS: Final = 120
"""Width of tables that go into a file or a pipe, which cannot say how wide they are."""


def make_console(json_target: str | None = None) -> Console:
    """Return where people are talked to: standard error when standard output is JSON."""
    console = Console(stderr=json_target == STDOUT)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_COLUMNS
    return console


def write_json(target: str | None, value: Any) -> None:
    """Write ``value`` as one object with a line end; do nothing without a target.

    Raises:
        OSError: The file cannot be written.
    """
    if target is None:
        return
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    if target == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        Path(target).write_text(text, "utf-8")

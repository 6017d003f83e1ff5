"""Runs the files of examples/ as their reader does: in a process, with the clients' programs."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.running_fog import ROOT, environment

FOLDER: Final = ROOT / "examples"
PROGRAMS: Final = FOLDER / ".venv" / "bin"
"""Made by `make clients`."""

_INTERPRETERS: Final = {".py": "python", ".mjs": "node", ".sh": "sh"}
_TIMEOUT_SECONDS: Final = 90
_ENVIRON: Final = {
    # What some clients fetch or report by themselves at their start.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    # Each line has its time.
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Line:
    """What an example printed, and when, on `time.monotonic`."""

    text: str
    at: float


@dataclass(frozen=True)
class Run:
    """An example that has ended well."""

    lines: list[Line]

    @property
    def text(self) -> str:
        """All it printed."""
        return "\n".join(line.text for line in self.lines)

    def at(self, beginning: str) -> float:
        """Return when the line was printed that begins so."""
        return next(line.at for line in self.lines if line.text.startswith(beginning))


def run_example(name: str, *arguments: str, environ: Mapping[str, str]) -> Run:
    """Run a file of examples/ to its end.

    Args:
        name: The file; its suffix says what runs it.
        arguments: Of its command line.
        environ: Added to the environment.

    Raises:
        AssertionError: As `run_program`.
    """
    path = FOLDER / name
    return run_program(_interpreter(path.suffix), path, *arguments, environ=environ)


def run_program(*command: Path | str, environ: Mapping[str, str] | None = None) -> Run:
    """Run a program to its end, with those of the clients first in its path.

    Raises:
        AssertionError: It failed, or took longer than 90 s.
    """
    path = os.pathsep.join([str(PROGRAMS), os.environ.get("PATH", "")])
    process = subprocess.Popen(
        command,
        env={**environment(), **_ENVIRON, "PATH": path, **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(_TIMEOUT_SECONDS, process.kill)
    watchdog.start()
    try:
        with process:
            assert process.stdout is not None
            run = Run([Line(text.rstrip("\n"), time.monotonic()) for text in process.stdout])
    finally:
        watchdog.cancel()
    assert process.returncode == 0, f"{command} ended with {process.returncode}\n{run.text}"
    return run


def _interpreter(suffix: str) -> Path | str:
    name = _INTERPRETERS[suffix]
    found = PROGRAMS / name
    return found if found.exists() else name

"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fog.commands import app
from tests.fog.what_if_rig import fake_calibration


@pytest.fixture
def fog_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "fog.toml"
        path.write_text(text, "utf-8")
        return path

    return write


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        # A worker of pytest-xdist has a width of its own.
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr("fog.hypothetical.measured_here", lambda cache: fake_calibration)
        monkeypatch.setattr("fog.simulate.measured_here", lambda cache: fake_calibration)
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run

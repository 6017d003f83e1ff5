"""`e2llm chaos` as a person runs it: its own fog, all kinds of faults, every answer compared."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running_fog import ROOT, environment

# A fog of its own, so it may run beside the other one.
pytestmark = [pytest.mark.xdist_group("chaos"), pytest.mark.slow, pytest.mark.timeout(400)]


def test_under_every_kind_of_fault_no_answer_is_lost_or_wrong(
    mosquitto_path: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"

    done = subprocess.run(
        [sys.executable, "-m", "fog", "chaos", "short", "--json", str(report)],
        env=environment(),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert (found["lost"], found["wrong"]) == (0, 0)
    assert found["faults"] >= 9
    assert found["requests"] >= 16
    met = {incident["kind"] for incident in found["incidents"] if "skipped" not in incident}
    assert {"kill", "freeze", "cut"} <= met

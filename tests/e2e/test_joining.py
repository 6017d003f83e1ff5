"""A device joins a fog that runs, with one command, leaves it again, and is removed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from broker.credentials import load_credentials
from tests.support.command_line import e2llm
from tests.support.running_fog import ROOT, environment, running_fog


@pytest.mark.slow
def test_a_device_joins_with_one_command_and_starts_again_without_a_token(tmp_path: Path) -> None:
    with running_fog(tmp_path) as fog:
        token = e2llm("token", "create", "--url", fog.url).stdout.strip()
        state = tmp_path / "guest"
        options = ("--id", "guest", "--state", str(state), "--memory", "40 %")
        refused = e2llm("node", "join", "--gateway", fog.url, "--token", "no", *options)
        assert refused.returncode == 1

        joined = e2llm(
            "node", "join", "--gateway", fog.url, "--token", token, "--no-start", *options
        )
        assert joined.returncode == 0, joined.stderr
        again = e2llm("node", "join", "--gateway", fog.url, "--token", token, *options)
        assert "there already" in again.stderr

        node = subprocess.Popen(
            [sys.executable, "-m", "fog", "node", "start", *options],
            env={**environment(), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
        )
        try:
            fog.until(lambda: "guest" in fog.devices(), "the guest is there")
            # Who has just come gets a place in the next plan, or is left idle by it.
            fog.wait_until_whole()
            # The same process: a supervisor that stops the command stops the node.
            assert fog.devices()["guest"]["pid"] == node.pid
        finally:
            node.send_signal(signal.SIGTERM)
            assert node.wait(20) == 0
        fog.until(lambda: fog.devices()["guest"]["state"] == "lost", "the guest has left")

        removed = e2llm("device", "remove", "guest", "--url", fog.url)
        assert removed.stdout == "guest was removed.\n", removed.stderr
        assert "guest" not in fog.devices()
        assert "guest" not in load_credentials(fog.state.broker / "credentials.json")

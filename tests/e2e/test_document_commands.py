"""Every block of commands in the documents is run against a fog, or says why it is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import ROOT, Block, commands, documents, named_files
from tests.support.running_fog import RunningFog

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.slow]

RUN = [block for path in documents() for block in commands(path) if block.not_run is None]
TIMEOUT_SECONDS = 90


def as_here(text: str, fog: RunningFog) -> str:
    """Return commands with the addresses of a fog of the tests in place of the usual ones."""
    return text.replace("http://127.0.0.1:8080", fog.url).replace(
        "~/.local/state/e2llm/8080", str(fog.state.path)
    )


@pytest.mark.timeout(TIMEOUT_SECONDS + 30)
@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_a_block_of_commands_runs(block: Block, fog: RunningFog, tmp_path: Path) -> None:
    for name, text in named_files(block.path).items():
        (tmp_path / name).write_text(text, "utf-8")
    environ = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "E2LLM_URL": fog.url,
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", as_here(block.text, fog)],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"

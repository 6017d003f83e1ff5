"""`e2llm up` for real: all processes, the demo model, answers over MQTT."""

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from fog.ports import free_port

ROOT = Path(__file__).parents[2]


async def up_once(prompt: str, port: int, state: Path) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "fog", "up", "--once", prompt, "--json", "-"),
        *("--port", str(port), "--state", str(state)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    output, messages = await process.communicate()
    assert process.returncode == 0, messages.decode()
    # Nothing but one object, or this fails.
    answer: dict[str, Any] = json.loads(output)
    return answer


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_two_fogs_side_by_side_answer_alike_and_leave_no_process_behind(
    tmp_path: Path,
) -> None:
    rng = random.SystemRandom()
    ports = [free_port(rng), free_port(rng)]
    states = [tmp_path / "one", tmp_path / "two"]

    answers = await asyncio.gather(
        *(up_once("What is 7 plus 5?", *pair) for pair in zip(ports, states, strict=True))
    )

    for answer in answers:
        assert set(answer) == {"text", "token_ids", "ttft_seconds", "tpot_seconds", "plan"}
        assert "12" in answer["text"]
        assert answer["ttft_seconds"] > 0
        replicas = answer["plan"]["replicas"]
        assert {"prefill", "decode"} <= {replica["role"] for replica in replicas}
        # Really split: no device holds the whole model.
        assert all(len(replica["stages"]) >= 2 for replica in replicas)
    # Each fog planned by its own measurements, so the splits may differ; the tokens may not.
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
    assert [p.cmdline() for p in processes_of(states)] == []


def processes_of(states: list[Path]) -> list[psutil.Process]:
    """Return the processes that were started with one of the state folders."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if any(word.startswith(str(state)) for word in words for state in states):
            found.append(process)
    return found

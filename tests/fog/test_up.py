"""`e2llm up` for real: all processes, the demo model, answers over MQTT."""

import asyncio
from pathlib import Path

import pytest

from tests.support.running_fog import up_once


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_two_fogs_side_by_side_answer_alike_and_leave_no_process_behind(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]

    # Each looks for processes that are left when it has ended.
    outcomes = await asyncio.gather(
        *(asyncio.to_thread(up_once, folder, "What is 7 plus 5?") for folder in folders)
    )

    answers = [outcome.answer for outcome in outcomes]
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

"""`e2llm plan --what-if`: options become a question, and the answer is words."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fog.suppositions import SuppositionError, answer_view, parse_suppositions
from tests.fog.fake_gateway import PLAN, Behaviour, serve
from tests.support.command_line import e2llm


def rendered(answer: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(answer_view(answer))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_changes_are_written_as_one_option_each() -> None:
    body = parse_suppositions(
        ["drop=laptop", "slow=pi:2.5", "add=raspberry-pi-5-8gb", "add=attic:jetson"]
    )

    assert body == {
        "drop": ["laptop"],
        "slow": {"pi": 2.5},
        "add": [
            {"id": "raspberry-pi-5-8gb-1", "like": "raspberry-pi-5-8gb"},
            {"id": "attic", "like": "jetson"},
        ],
    }


@pytest.mark.parametrize(
    "text", ["laptop", "drop=", "drop=a:b", "slow=pi", "slow=pi:fast", "lose=pi", "add="]
)
def test_a_change_that_is_written_wrongly_is_refused_by_name(text: str) -> None:
    with pytest.raises(SuppositionError, match=f"--what-if {text}"):
        parse_suppositions([text])


def test_an_answer_says_why_what_it_gains_and_what_would_move() -> None:
    plan = {**PLAN, "predicted": {"requests_per_second": 3.0}}
    text = rendered(
        {
            "plan": plan,
            "reason": "it gains 50%",
            "before": {"requests_per_second": 2.0},
            "moves": [{"device": "attic", "num_bytes": 5_000_000, "seconds": 0.5}],
            "by_data_sheet": ["attic"],
            "keeps_replicas": False,
        }
    )

    assert "Why: it gains 50%" in text
    assert "3 requests/s instead of 2 (+50%)" in text
    assert "attic would load 4.8 MiB, 500 ms over its link" in text
    assert "By data sheet, not measured: attic" in text
    assert "Nothing was changed." in text


def test_the_command_asks_the_gateway_and_ends_with_1_where_there_is_no_plan() -> None:
    behaviour = Behaviour()
    with serve(behaviour) as url:
        done = e2llm("plan", "--what-if", "drop=laptop", "--url", url)
        wrong = e2llm("plan", "--what-if", "laptop", "--url", url)
        mixed = e2llm("plan", "--what-if", "drop=laptop", "--fog", "x.toml")

    assert (done.returncode, wrong.returncode, mixed.returncode) == (1, 2, 2)
    assert "could not serve the model" in done.stdout
    assert "10 MB are missing" in done.stdout
    assert behaviour.asked == [("/fog/what-if", {"drop": ["laptop"], "slow": {}, "add": []})]
    assert "--what-if laptop: write drop=ID" in wrong.stderr

"""A plan chosen by simulation, and what stands beside a plan, by the command line."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from tests.fog.what_if_rig import TWO_PIS


def test_the_column_of_a_device_alone_says_that_it_is_not_lost_there(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result]
) -> None:
    result = invoke(
        "simulate", "--fog", fog_file(TWO_PIS), "--requests", 20, "--lose", "pi-a@5s"
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    assert "pi-a alone, not lost" in re.sub(r"\s+", " ", result.output)


def test_a_chosen_plan_stands_beside_the_planned_one(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    target = tmp_path / "out.json"

    result = invoke(
        "simulate", "--fog", fog_file(TWO_PIS), "--requests", 20, "--choose", "--json", target
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    found = json.loads(target.read_text("utf-8"))
    assert found["after"] is None
    assert found["chosen"]["plan"]["optimality"] == "best by simulation on 20 samples"
    assert found["chosen"]["metrics"]["num_finished"] == 20
    assert "planned" in result.output


def test_a_plan_for_a_trace_is_chosen_by_the_trace(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    trace, target = tmp_path / "trace.csv", tmp_path / "out.json"
    trace.write_text("arrival,prompt,answer\n0,100,20\n1,90,30\n2,110,25\n", "utf-8")

    result = invoke(
        "simulate", "--fog", fog_file(TWO_PIS), "--workload", trace, "--choose", "--json", target
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    chosen = json.loads(target.read_text("utf-8"))["chosen"]
    assert chosen["plan"]["optimality"] == "best by simulation on 1 sample"


def test_a_plan_is_not_chosen_while_the_fog_changes(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result]
) -> None:
    result = invoke("simulate", "--fog", fog_file(TWO_PIS), "--choose", "--lose", "pi-a@5s")

    assert result.exit_code == 2
    assert "leave out --add, --lose, --link" in result.output

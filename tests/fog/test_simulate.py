"""What-if without a fog: plans, simulations and errors, by the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.fog.what_if_rig import CATALOGUE_FOG, FOG


def test_before_and_after_are_simulated_with_the_same_requests(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    target = tmp_path / "out.json"

    result = invoke(
        "simulate", "--fog", fog_file(FOG), "--requests", 30, "--rate", 0.5,
        "--add", "pi:raspberry-pi-5-8gb", "--lose", "big@20s", "--json", target,
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    found = json.loads(target.read_text("utf-8"))
    assert found["requests"] == 30
    assert found["before"]["metrics"]["num_finished"] == 30
    assert found["after"]["metrics"]["num_finished"] == 30
    later = found["after"]["later_plans"][0]
    assert later["active_from_seconds"] > 20
    used = {s["device"] for r in later["plan"]["replicas"] for s in r["stages"]}
    assert "big" not in used
    assert "before" in result.output
    assert "after" in result.output


def test_losing_what_cannot_be_spared_leaves_requests_unfinished_and_says_so(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    target = tmp_path / "out.json"

    result = invoke(
        "simulate", "--fog", fog_file(FOG), "--requests", 40, "--rate", 1,
        "--lose", "big@10s", "--json", target,
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    after = json.loads(target.read_text("utf-8"))["after"]
    assert after["metrics"]["num_unfinished"] > 0
    assert "without big there is no plan" in after["notes"][0]


def test_a_worse_link_makes_the_fog_slower(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    target = tmp_path / "out.json"

    result = invoke(
        "simulate", "--fog", fog_file(FOG), "--requests", 30,
        "--link", "small:50ms,1Mbit/s", "--json", target,
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    found = json.loads(target.read_text("utf-8"))
    before, after = (found[name]["metrics"]["tpot"]["mean"] for name in ("before", "after"))
    assert after > before


def test_explain_has_a_reason_for_every_device_and_the_best_single_one(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    target = tmp_path / "plan.json"

    result = invoke(
        "plan", "--fog", fog_file(CATALOGUE_FOG), "--explain",
        "--model", "llama-3.2-1b", "--weights", "int8", "--json", target,
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    found = json.loads(target.read_text("utf-8"))
    assert [entry["device"] for entry in found["devices"]] == ["pi-a", "pi-b", "gpu"]
    assert all(entry["reason"] and entry["without"] for entry in found["devices"])
    assert "gpu" in found["best_single_device"]
    rate = found["plan"]["predicted"]["requests_per_second"]
    single = found["plan"]["best_single_device"]["predicted"]["requests_per_second"]
    assert rate >= single * (1 - 1e-9)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("slowdown = 2", "slowdwn = 2", "fog.toml:4: .*did you mean 'slowdown'"),
        ('"80 %"', '"-80 %"', "fog.toml:5: .*greater than 0"),
        ('"100 Mbit/s"', '"100 Mbaud"', "fog.toml:12: .*unknown unit"),
        ('"small"', '"big"', "fog.toml:8: .*already the device of line 3"),
    ],
)
def test_a_wrong_fog_file_names_the_line(
    fog_file: Callable[[str], Path],
    invoke: Callable[..., Result],
    old: str,
    new: str,
    match: str,
) -> None:
    import re

    assert old in FOG

    result = invoke("simulate", "--fog", fog_file(FOG.replace(old, new, 1)))

    assert result.exit_code == 2
    assert re.search(match, result.stderr.replace("\n", " ")), result.stderr


def test_an_unknown_catalogue_device_is_named_with_its_line(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result]
) -> None:
    result = invoke("plan", "--fog", fog_file(CATALOGUE_FOG.replace("rtx-3060-12gb", "rtx-3060")))

    assert result.exit_code == 2
    assert "fog.toml:12" in result.stderr
    assert "rtx-3060-12gb" in result.stderr


def test_a_model_that_does_not_fit_says_how_much_is_missing(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result]
) -> None:
    result = invoke(
        "plan", "--fog", fog_file(CATALOGUE_FOG), "--model", "gpt-oss-20b", "--weights", "float32"
    )

    assert result.exit_code == 1
    assert "GB are missing" in result.stderr


@pytest.mark.parametrize("arguments", [(), ("--paper", "--fog", "x.toml")])
def test_simulate_needs_a_fog_or_the_paper(
    invoke: Callable[..., Result], arguments: tuple[str, ...]
) -> None:
    result = invoke("simulate", *arguments)

    assert result.exit_code == 2
    assert "either --fog FILE or --paper" in result.stderr


def test_the_paper_command_writes_plans_cells_and_figures(
    invoke: Callable[..., Result], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    target, figures = tmp_path / "paper.json", tmp_path / "figures"

    result = invoke("simulate", "--paper", "--seeds", 1, "--json", target, "--figures", figures)

    assert result.exit_code == 0, result.output
    found = json.loads(target.read_text("utf-8"))
    assert len(found["plans"]) == 4
    assert len(found["cells"]) == 32
    assert len(list(figures.glob("*.png"))) == 4

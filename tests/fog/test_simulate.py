"""What-if without a fog: plans, simulations and errors, by the command line."""

import json
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from typer.testing import Result

from fog.commands import run
from fog.output import OutputError
from fog.paper import spread_over_processors
from planner.paper.errors import IDEAL
from planner.paper.waiting import Model, simulate_paper
from tests.fog.what_if_rig import CATALOGUE_FOG, FOG, ONE_IS_USEFUL


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


def test_a_table_says_which_device_does_what_before_and_after(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result]
) -> None:
    result = invoke(
        "simulate", "--fog", fog_file(FOG), "--requests", 20, "--rate", 0.5,
        "--add", "pi:raspberry-pi-5-8gb", "--add", "twin:small", "--link", "small:20ms",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "pi (like raspberry-pi-5-8gb) is added" in text
    assert "twin (like small) is added" in text
    assert "the link of small has 20 ms one way" in text
    assert "By data sheet, not measured: pi (raspberry-pi-5-8gb)" in text
    assert "Measured on this machine and slowed as the file says: big, small, twin" in text
    rows = [line.split() for line in result.output.splitlines()]
    (pi,) = [row for row in rows if row[:1] == ["pi"] and "-" in row]
    assert pi[1:3] == ["-", "-"]


def test_a_fog_in_which_one_device_answers_sooner_alone_is_that_device(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    target = tmp_path / "out.json"

    result = invoke(
        "simulate", "--fog", fog_file(ONE_IS_USEFUL), "--model", "llama-3.1-8b",
        "--weights", "int4", "--json", target,
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    found = json.loads(target.read_text("utf-8"))
    stages = [s["device"] for r in found["before"]["plan"]["replicas"] for s in r["stages"]]
    assert stages == ["gpu"]
    assert found["best_single_device_alone"] is None


def test_slow_devices_of_a_plan_make_no_request_longer_and_a_target_leaves_them_out(
    fog_file: Callable[[str], Path],
    invoke: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "out.json"
    fog_text = ONE_IS_USEFUL + "\n[planner]\nnever_behind = false\n"
    arguments = (
        "simulate", "--fog", fog_file(fog_text), "--model", "llama-3.1-8b",
        "--weights", "int4", "--json", target,
    )  # fmt: skip

    without = invoke(*arguments)
    found = json.loads(target.read_text("utf-8"))
    within = invoke(*arguments, "--ttft", "2s", "--tpot", "150ms")
    aimed = json.loads(target.read_text("utf-8"))

    assert without.exit_code == within.exit_code == 0
    fog, alone = (
        found[name]["metrics"]["end_to_end"]["mean"]
        for name in ("before", "best_single_device_alone")
    )
    # The plan has slow devices for more throughput; below full load requests wait for the fast.
    assert {"pi-a", "pi-b"} <= {
        s["device"] for r in found["before"]["plan"]["replicas"] for s in r["stages"]
    }
    assert fog <= 1.05 * alone
    assert "gpu alone" in without.output
    assert [s["device"] for r in aimed["before"]["plan"]["replicas"] for s in r["stages"]] == [
        "gpu"
    ]
    assert aimed["best_single_device_alone"] is None
    assert aimed["before"]["within_targets"] > 0.95
    assert aimed["before"]["metrics"]["ttft"]["p99"] < 2
    assert "pi-a is not used" in within.output

    # Any longer is a reason to say so.
    monkeypatch.setattr("fog.simulate._NOTABLY", 0.95)
    assert "A target changes that" in " ".join(invoke(*arguments).output.split())


def test_times_of_the_few_that_finish_are_not_called_a_gain(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result]
) -> None:
    result = invoke(
        "simulate", "--fog", fog_file(FOG), "--requests", 40, "--rate", 1, "--lose", "big@10s"
    )

    rows = [line for line in result.output.splitlines() if "end to end" in line]
    assert "never do" in " ".join(result.output.split())
    assert "%" not in rows[0]
    assert "times" not in rows[0]


def test_more_requests_than_the_plan_serves_are_pointed_out(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result]
) -> None:
    result = invoke("simulate", "--fog", fog_file(FOG), "--requests", 20, "--rate", 500)

    assert "500 requests per second are more than the plan's" in " ".join(result.output.split())


def test_nothing_is_started(
    fog_file: Callable[[str], Path],
    invoke: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a process was started, or an address connected to")

    monkeypatch.setattr("subprocess.Popen.__init__", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)

    planned = invoke("plan", "--fog", fog_file(FOG), "--explain")
    simulated = invoke("simulate", "--fog", fog_file(FOG), "--requests", 5)

    assert (planned.exit_code, simulated.exit_code) == (0, 0)


def test_the_catalogue_lists_what_fog_files_and_options_can_name(
    invoke: Callable[..., Result], tmp_path: Path
) -> None:
    target = tmp_path / "catalogue.json"

    result = invoke("catalogue", "--json", target)

    assert result.exit_code == 0
    found = json.loads(target.read_text("utf-8"))
    assert found["devices"]["raspberry-pi-5-8gb"]["memory_bytes"] == 7_000_000_000
    assert found["models"]["llama-3.1-8b"]["num_layers"] == 32
    for name in (*found["devices"], *found["models"]):
        assert name in result.output


@pytest.mark.parametrize(
    ("arguments", "exit_code", "match"),
    [
        (("--workload", "chatt"), 2, "no such file and no such workload; known: .*chat"),
        (("--rate", "nan"), 2, "is not a rate"),
        (("--rate", "inf"), 2, "is not a rate"),
        (("--rate", "1e-300"), 2, "is not a rate"),
        (("--requests", "0"), 2, "--requests"),
        (("--seed", "-1"), 2, "--seed"),
        (("--prompt-tokens", "0"), 2, "--prompt-tokens"),
        (("--arrivals", "sometimes"), 2, "use poisson, fixed, bursty"),
        (("--ttft", "2"), 2, "has no unit"),
        (("--tpot", "0 ms"), 2, "not greater than 0"),
        (("--seeds", "5"), 2, "--seeds goes with --paper, not with a fog"),
        (("--paper",), 2, "takes --fog FILE or --paper, not both"),
        (("--lose", "nobody@5s"), 2, "no device 'nobody'; known: big, small"),
        (("--add", "pi"), 2, "it has no numbers"),
        (("--link", "big:fast"), 2, "'fast' is not a number with a unit"),
        (("--model", "nothere"), 2, "no folder with a config.json, and not in the catalogue"),
        (("--weights", "float99"), 2, "no such format"),
        (("--json", "/nonexistent/x.json"), 2, "folder of /nonexistent/x.json does not exist"),
        (("--json", "."), 2, "is a folder"),
    ],
)
def test_a_wrong_option_ends_in_a_sentence_that_names_it(
    fog_file: Callable[[str], Path],
    invoke: Callable[..., Result],
    arguments: tuple[str, ...],
    exit_code: int,
    match: str,
) -> None:
    result = invoke("simulate", "--fog", fog_file(FOG), *arguments)

    assert result.exit_code == exit_code
    assert isinstance(result.exception, SystemExit)
    assert re.search(match, " ".join(result.stderr.split())), result.stderr


def test_a_damaged_trace_is_named_with_its_line(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival,prompt,answer\n0,10,5\n1,many,5\n", "utf-8")

    result = invoke("simulate", "--fog", fog_file(FOG), "--workload", trace)

    assert result.exit_code == 2
    assert "line 3 of the trace" in result.stderr
    assert "1,many,5" in result.stderr


def test_a_trace_whose_requests_come_at_once_is_simulated(
    fog_file: Callable[[str], Path], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("5,10,5\n5,20,5\n", "utf-8")

    result = invoke("simulate", "--fog", fog_file(FOG), "--workload", trace)

    assert result.exit_code == 0, result.output
    assert "Requests  2, all at once" in result.output


def test_a_folder_of_figures_that_cannot_be_made_is_refused_before_the_work(
    tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")

    result = invoke("simulate", "--paper", "--figures", tmp_path / "file" / "figures")

    assert result.exit_code == 1
    assert isinstance(result.exception, OutputError)
    assert "cannot be made: Not a directory" in str(result.exception)
    assert result.output == ""


def test_a_result_that_cannot_be_written_is_named_with_the_reason(
    fog_file: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    monkeypatch.setattr("sys.argv", ["e2llm", "catalogue", "--json", "full.json"])

    with pytest.raises(SystemExit) as ended:
        run()

    assert ended.value.code == 1
    assert (
        capsys.readouterr().err == "e2llm: full.json cannot be written: No space left on device\n"
    )


def test_simulate_needs_a_fog_or_the_paper(invoke: Callable[..., Result]) -> None:
    result = invoke("simulate")

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
    assert len(list(figures.glob("*.png"))) == 4
    workloads, policies = ("extended", "custom"), ("e2llm", "adapted-splitwise")
    assert [(plan["workload"], plan["policy"]) for plan in found["plans"]] == list(
        product(workloads, policies)
    )
    for plan in found["plans"]:
        assert isinstance(plan["decoder_slots"], int)
        assert 0 < plan["objective"] <= plan["published_plan_objective"]
        assert {replica["role"] for replica in plan["replicas"]} == {"prefill", "decode"}
        assert plan["decoder_slots"] == sum(
            replica["slots"] for replica in plan["replicas"] if replica["role"] == "decode"
        )
    cells = {
        (cell["workload"], cell["period_s"], cell["policy"], cell["model"]): cell
        for cell in found["cells"]
    }
    assert set(cells) == set(
        product(workloads, (0.5, 1.0, 2.0, 3.0), policies, ("ideal", "with-error"))
    )
    for cell in cells.values():
        assert 0 < cell["waiting_p5_s"] <= cell["waiting_mean_s"] <= cell["waiting_p95_s"]
        assert cell["published_waiting_mean_s"] > 0


def test_many_runs_are_spread_over_processes_and_come_out_the_same() -> None:
    with spread_over_processors(200) as mapped:
        spread = list(simulate_paper(1, [(Model.IDEAL, IDEAL)], mapped))

    assert mapped is not map
    assert spread == list(simulate_paper(1, [(Model.IDEAL, IDEAL)]))

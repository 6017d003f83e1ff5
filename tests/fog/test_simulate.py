"""What-if without a fog: changes, workloads, plans and errors, by the command line's own words."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from broker.control import DecodeTime, LayerTimes, ModelManifest, PrefillTime
from fog import hypothetical
from fog.changes import ChangeError, Loss, parse_changes
from fog.commands import app
from fog.config import ConfigError, load_config
from fog.hypothetical import LOOPBACK, choose_planned_model, device_specs
from fog.model_choice import ModelChoiceError
from nodes.calibration import Calibration
from planner.catalogue.devices import load_devices
from planner.simulation import SimRequest
from planner.whatif.loads import LoadError, choose_load, cut_to_context

CATALOGUE = load_devices().devices
FOG = """
[[device]]
id = "big"
slowdown = 2
model_memory = "80 %"

[[device]]
id = "small"
slowdown = 4
model_memory = "60 %"
link_delay = "1 ms"
link_rate = "100 Mbit/s"
"""
CATALOGUE_FOG = """
[[device]]
id = "pi-a"
catalogue = "raspberry-pi-5-8gb"

[[device]]
id = "pi-b"
catalogue = "raspberry-pi-5-8gb"

[[device]]
id = "gpu"
catalogue = "rtx-3060-12gb"
"""


def fake_times(seconds: float) -> LayerTimes:
    return LayerTimes(
        prefill=[PrefillTime(n, n * seconds / 10) for n in (1, 1024)],
        decode=[DecodeTime(rows, 64, seconds * (1 + rows / 8)) for rows in (1, 16)],
    )


def fake_calibration(manifest: ModelManifest) -> Calibration:
    times = fake_times(0.001)
    return Calibration(
        blocks={"full": times},
        embedding=fake_times(1e-5),
        head=fake_times(1e-4),
        chunk_tokens=128,
        cpu_seconds_per_second=1.0,
    )


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
        monkeypatch.setattr(hypothetical, "measured_here", lambda cache: fake_calibration)
        monkeypatch.setattr("fog.simulate.measured_here", lambda cache: fake_calibration)
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


# --- devices ------------------------------------------------------------------------------


def test_an_emulated_device_is_this_machine_slowed_down(fog_file: Callable[[str], Path]) -> None:
    config = load_config(fog_file(FOG))
    model = choose_planned_model(None)

    big, small = device_specs(config.devices, model, 128, fake_calibration)

    assert big.blocks["full"].decode[0].seconds == pytest.approx(0.001 * 1.125 * 2)
    assert small.blocks["full"].decode[0].seconds == pytest.approx(0.001 * 1.125 * 4)
    assert big.link == LOOPBACK
    assert small.link.latency_seconds == pytest.approx(0.001)
    assert small.link.bytes_per_second == pytest.approx(12.5e6)


def test_a_share_of_memory_is_what_a_node_would_offer(fog_file: Callable[[str], Path]) -> None:
    from broker.architecture import parse_config
    from fog.model_choice import DEMO_MODEL
    from nodes.hardware import offered_bytes
    from nodes.settings import MemoryOffer

    config = load_config(fog_file(FOG))
    raw = json.loads((DEMO_MODEL / "config.json").read_text("utf-8"))
    offer = MemoryOffer(share=0.8)

    big, _ = device_specs(config.devices, choose_planned_model(None), 128, fake_calibration)

    assert big.memory_bytes == offered_bytes(
        offer, parse_config(raw), "float32", "float32", 1 << 40
    )


def test_a_catalogue_device_needs_no_measurement(fog_file: Callable[[str], Path]) -> None:
    config = load_config(fog_file(CATALOGUE_FOG), catalogue=CATALOGUE)
    model = choose_planned_model("llama-3.2-1b", "int8")

    def refuse(manifest: ModelManifest) -> Calibration:
        raise AssertionError("nothing is to be measured")

    specs = device_specs(config.devices, model, 128, refuse)

    assert [spec.memory_bytes for spec in specs] == [7_000_000_000] * 2 + [11_500_000_000]


def test_a_model_that_this_machine_cannot_time_asks_for_catalogue_devices(
    fog_file: Callable[[str], Path],
) -> None:
    config = load_config(fog_file(FOG))
    model = choose_planned_model("gpt-oss-20b", "mxfp4")

    with pytest.raises(ConfigError, match=r"device big: our nodes do not compute .*catalogue"):
        device_specs(config.devices, model, 128, fake_calibration)


def test_a_catalogue_model_that_nodes_compute_can_be_timed_here(
    fog_file: Callable[[str], Path],
) -> None:
    seen: list[ModelManifest] = []

    def calibrate(manifest: ModelManifest) -> Calibration:
        from broker.architecture import parse_config

        assert parse_config(manifest.config).num_layers == 28
        seen.append(manifest)
        return fake_calibration(manifest)

    config = load_config(fog_file(FOG))
    device_specs(config.devices, choose_planned_model("qwen3-0.6b"), 128, calibrate)

    assert len(seen) == 1


def test_up_refuses_a_catalogue_device_and_says_what_can_use_it(
    fog_file: Callable[[str], Path],
) -> None:
    with pytest.raises(ConfigError, match=r"fog.toml:4: .*e2llm simulate --fog"):
        load_config(fog_file(CATALOGUE_FOG))


# --- changes ------------------------------------------------------------------------------


def test_changes_are_read(fog_file: Callable[[str], Path]) -> None:
    config = load_config(fog_file(FOG))

    changes = parse_changes(
        config,
        CATALOGUE,
        add=["pi:raspberry-pi-5-8gb"],
        link=["big:20ms,50Mbit/s", "pi:5ms"],
        lose=["small@5min", "pi@30s"],
    )

    after = {device.id: device for device in changes.apply(config.devices)}
    assert set(after) == {"big", "small", "pi"}
    assert after["big"].link_delay_seconds == pytest.approx(0.02)
    assert after["big"].link_bytes_per_second == pytest.approx(50e6 / 8)
    assert after["pi"].link_delay_seconds == pytest.approx(0.005)
    assert changes.losses == (Loss("pi", 30.0), Loss("small", 300.0))


@pytest.mark.parametrize(
    ("option", "text", "match"),
    [
        ("add", "pi", "ID:CATALOGUE-DEVICE"),
        ("add", "pi:raspberry-pi-5", "did you mean 'raspberry-pi-5-8gb'"),
        ("add", "big:raspberry-pi-5-8gb", "already"),
        ("add", "a b:raspberry-pi-5-8gb", "cannot name a device"),
        ("link", "big:", "DELAY,RATE"),
        ("link", "bigg:20ms", "did you mean 'big'"),
        ("link", "big:20 parsecs", "unknown unit"),
        ("link", "big:-1ms", "negative"),
        ("lose", "big", "ID@TIME"),
        ("lose", "big@soon", "ID@TIME"),
        ("lose", "nobody@5s", "no device"),
    ],
)
def test_a_change_that_is_written_wrongly_is_named(
    fog_file: Callable[[str], Path], option: str, text: str, match: str
) -> None:
    config = load_config(fog_file(FOG))

    with pytest.raises(ChangeError, match=match) as caught:
        parse_changes(config, CATALOGUE, **{option: [text]})

    assert f"--{option} {text}" in str(caught.value)


# --- workloads and models -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["extended", "custom", "chat", "azure-code", "azure-conversation"])
def test_a_named_workload_has_its_means(name: str) -> None:
    load = choose_load(name)

    drawn = load.requests(4000, 2.0, 0)

    mean = sum(request.prompt_tokens for request in drawn) / len(drawn)
    assert mean == pytest.approx(load.prompt_tokens, rel=0.1)


def test_a_trace_is_replayed_at_its_own_rate_or_another(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival,prompt,answer\n0,10,5\n10,20,6\n20,30,7\n", "utf-8")
    load = choose_load(str(path))

    assert load.trace_rate == pytest.approx(0.1)
    assert [r.arrival_seconds for r in load.requests(None, 0.1, 0)] == [0, 10, 20]
    assert [r.arrival_seconds for r in load.requests(2, 0.2, 0)] == [0, 5]


def test_a_wrong_trace_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("0,10,5\n1,x,5\n", "utf-8")

    with pytest.raises(LoadError, match="line 2"):
        choose_load(str(path))


def test_an_unknown_workload_names_the_known_ones() -> None:
    with pytest.raises(LoadError, match=r"known: .*azure-code"):
        choose_load("azure-cod")


def test_requests_are_cut_to_the_context_and_counted() -> None:
    found, num_cut = cut_to_context(
        (SimRequest(0, 10, 10), SimRequest(0, 10, 100), SimRequest(0, 100, 10)), 50
    )

    assert [(r.prompt_tokens, r.answer_tokens) for r in found] == [(10, 10), (10, 40), (49, 1)]
    assert num_cut == 2


@pytest.mark.parametrize(
    ("model", "weights", "match"),
    [
        ("gpt-os-20b", None, "did you mean 'gpt-oss-20b'"),
        ("gpt-oss-20b", "float99", "float99"),
        (None, "int4", "int4"),
    ],
)
def test_an_impossible_model_is_refused(model: str | None, weights: str | None, match: str) -> None:
    with pytest.raises(ModelChoiceError, match=match):
        choose_planned_model(model, weights)


# --- the commands -------------------------------------------------------------------------


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

"""Devices and models as the planner would know them, without starting a fog."""

import json
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import pytest

from broker.architecture import parse_config, stage_bytes
from broker.control import ModelManifest
from fog.config import load_config
from fog.hypothetical import LOOPBACK, choose_planned_model, device_specs
from fog.model_choice import DEMO_MODEL, ModelChoiceError
from fog.shapes import shapes
from fog.tomlreader import ConfigError
from nodes.calibration import Calibration
from nodes.calibrator import Calibrated, CalibrationFailed
from nodes.profiler import Profiler
from nodes.profiles import calibration_key
from nodes.settings import MemoryOffer
from planner.live.conditions import Condition
from planner.live.inputs import device_spec
from tests.fog.what_if_rig import CATALOGUE, CATALOGUE_FOG, FOG, OWN_NUMBERS, fake_calibration


def test_an_emulated_device_is_this_machine_slowed_down(fog_file: Callable[[str], Path]) -> None:
    config = load_config(fog_file(FOG))
    model = choose_planned_model(None)

    big, small = device_specs(config.devices, model, 128, fake_calibration)

    assert big.blocks["full"].decode[0].seconds == pytest.approx(0.001 * 1.125 * 2)
    assert small.blocks["full"].decode[0].seconds == pytest.approx(0.001 * 1.125 * 4)
    assert big.link == LOOPBACK
    # Its process is as far from the broker as any on this machine, and then what it emulates.
    assert small.link.latency_seconds == pytest.approx(LOOPBACK.latency_seconds + 0.001)
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

    with pytest.raises(
        ConfigError, match=r"device big: our nodes do not hold mxfp4 weights.*catalogue"
    ):
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


def test_a_folder_with_experts_is_planned_by_the_experts_that_work(
    fog_file: Callable[[str], Path], tmp_path: Path
) -> None:
    config = load_config(fog_file(OWN_NUMBERS), catalogue=CATALOGUE)
    (tmp_path / "config.json").write_text(json.dumps(shapes()["qwen3-moe-small"]), "utf-8")
    model = choose_planned_model(str(tmp_path), "bfloat16")

    (spec,) = device_specs(config.devices, model, 128, fake_calibration)

    blocks = {t.batch: t.seconds for t in spec.blocks["full-moe"].decode if t.context == 64}
    # One row reads 4 of 32 experts, many rows read them all.
    attention = model.shape.attention_bytes("full-moe", model.weights)
    expert = model.shape.expert_bytes("full-moe", model.weights)
    assert blocks[1] == pytest.approx((attention + 4 * expert) / 8e9, rel=0.05)
    assert max(blocks.values()) > (attention + 31 * expert) / 8e9
    assert model.spec.block_bytes[0] == pytest.approx(attention + 32 * expert, rel=0.001)


def test_a_device_outside_the_catalogue_says_its_own_numbers(
    fog_file: Callable[[str], Path],
) -> None:
    config = load_config(fog_file(OWN_NUMBERS), catalogue=CATALOGUE)
    model = choose_planned_model("llama-3.2-1b", "bfloat16")

    (spec,) = device_specs(config.devices, model, 128, fake_calibration)

    one_row = next(t for t in spec.blocks["full"].decode if (t.batch, t.context) == (1, 64))
    assert spec.memory_bytes == 6_000_000_000
    # Decode of one row reads a block's weights once.
    assert one_row.seconds == pytest.approx(model.spec.block_bytes[0] / 8e9, rel=0.02)
    (prompt,) = [t for t in spec.blocks["full"].prefill if t.num_tokens == 128]
    assert prompt.seconds == pytest.approx(128 * model.spec.block_bytes[0] / 60e9, rel=0.05)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('compute = "60 Gflop/s"', "", r"fog.toml:2: .*needs the key 'compute'"),
        ('memory_rate = "8 GB/s"', "", r"fog.toml:2: .*needs the key 'memory_rate'"),
        ('model_memory = "6 GB"', "", r"fog.toml:2: .*needs the key 'model_memory'"),
        ("60 Gflop/s", "60 flops", r"fog.toml:4: .*unknown unit 'flops'"),
        ("60 Gflop/s", "0 Gflop/s", r"fog.toml:4: .*greater than 0"),
        ("60 Gflop/s", "1e300 Tflop/s", r"fog.toml:4: .*too large"),
        ('id = "orange-pi"', 'id = "pi"\ncatalogue = "raspberry-pi-5-8gb"', "one or the other"),
    ],
)
def test_numbers_that_are_missing_or_wrong_are_named_with_their_line(
    fog_file: Callable[[str], Path], old: str, new: str, match: str
) -> None:
    assert old in OWN_NUMBERS

    with pytest.raises(ConfigError, match=match):
        load_config(fog_file(OWN_NUMBERS.replace(old, new)), catalogue=CATALOGUE)


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_a_catalogue_model_takes_the_memory_that_our_nodes_take(
    fog_file: Callable[[str], Path], weights: str
) -> None:
    config = load_config(fog_file(CATALOGUE_FOG), catalogue=CATALOGUE)
    model = choose_planned_model("qwen2.5-0.5b", weights)
    assert model.manifest is not None

    specs = device_specs(config.devices, model, 128, fake_calibration)

    held = stage_bytes(
        parse_config(model.manifest.config), weights, range(24), embedding=True, head=True
    )
    assert model.spec.weight_bytes == held
    # They keep no weights in a host's memory, as the catalogue's graphics cards could.
    assert all(spec.host_memory_bytes == 0 for spec in specs)


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "gpt-oss-20b"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_a_mixture_of_the_catalogue_weighs_what_our_nodes_hold(name: str, weights: str) -> None:
    model = choose_planned_model(name, weights)

    assert model.manifest is not None
    catalogued = model.shape.spec(model.weights, "float32")
    assert model.spec.block_kinds == catalogued.block_kinds
    assert model.spec.weight_bytes == catalogued.weight_bytes
    assert model.spec.block_bytes == catalogued.block_bytes


def test_a_model_that_only_others_compute_may_use_host_memory(
    fog_file: Callable[[str], Path],
) -> None:
    config = load_config(fog_file(CATALOGUE_FOG), catalogue=CATALOGUE)

    *_, gpu = device_specs(
        config.devices, choose_planned_model("gpt-oss-20b", "mxfp4"), 128, fake_calibration
    )

    assert gpu.host_memory_bytes > 0


def test_up_refuses_a_catalogue_device_and_says_what_can_use_it(
    fog_file: Callable[[str], Path],
) -> None:
    with pytest.raises(ConfigError, match=r"fog.toml:4: .*e2llm simulate --fog"):
        load_config(fog_file(CATALOGUE_FOG))
    with pytest.raises(ConfigError, match=r"fog.toml:4: .*e2llm simulate --fog"):
        load_config(fog_file(OWN_NUMBERS))


@pytest.mark.parametrize(
    ("model", "weights", "match"),
    [
        ("gpt-os-20b", None, "did you mean 'gpt-oss-20b'"),
        ("gpt-oss-20b", "float99", "float99"),
        (None, "mxfp4", "mxfp4"),
    ],
)
def test_an_impossible_model_is_refused(model: str | None, weights: str | None, match: str) -> None:
    with pytest.raises(ModelChoiceError, match=match):
        choose_planned_model(model, weights)


def test_this_machine_is_measured_once_for_a_running_fog_and_for_what_if(tmp_path: Path) -> None:
    from gateway.manifest import prepare_manifest

    served = prepare_manifest(
        DEMO_MODEL,
        name="demo",
        weights="float32",
        kv_format="float32",
        cache=tmp_path / "checksums.json",
    ).manifest
    planned = choose_planned_model(None).manifest
    assert planned is not None

    keys = {
        calibration_key(
            parse_config(manifest.config),
            manifest.weights,
            manifest.kv_format,
            "this processor",
            1,
            "0.1.0",
        )
        for manifest in (served, planned)
    }

    assert len(keys) == 1


def test_what_is_planned_is_what_the_planner_would_hear_from_the_nodes(
    fog_file: Callable[[str], Path],
) -> None:
    class Measured:
        """The calibrator of a node, which has finished."""

        def __init__(self) -> None:
            self.events: SimpleQueue[Calibrated | CalibrationFailed] = SimpleQueue()
            self.hardware = "this processor"

        def start(self, manifest: ModelManifest) -> None:
            self.events.put(Calibrated(manifest, fake_calibration(manifest)))

    config = load_config(fog_file(FOG))
    model = choose_planned_model(None)
    assert model.manifest is not None

    specs = device_specs(config.devices, model, 128, fake_calibration)

    for device, spec in zip(config.devices, specs, strict=True):
        offer = MemoryOffer.parse(str(device.model_memory))
        node = Profiler(Measured(), offer, slowdown=device.slowdown)
        node.take_manifest(model.manifest)
        node.take_link(spec.link)
        node.poll()
        profile = node.profile(session=1)
        assert profile is not None
        assert device_spec(device.id, profile, Condition(), model.spec) == spec


@pytest.mark.parametrize(
    ("config", "match"), [("[]", "config.json"), ("{", "config.json"), ("{}", "model_type")]
)
def test_a_damaged_model_folder_is_refused(tmp_path: Path, config: str, match: str) -> None:
    (tmp_path / "config.json").write_text(config)

    with pytest.raises(ModelChoiceError, match=match):
        choose_planned_model(str(tmp_path))

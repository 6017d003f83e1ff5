"""Devices and models by data sheet give the tables that measuring would give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

import planner
from broker.architecture import parse_config, shared_bytes
from broker.control import Link, ModelManifest
from planner.catalogue import WeightFormat, load_devices, load_models
from planner.cost import device_cost
from planner.live.inputs import model_spec
from planner.model import Objective, Roles, Workload
from planner.replicas import Fog
from planner.sourced import UnsourcedNumberError

MODELS, DEVICES = load_models(), load_devices().devices
LLAMA_LIKE = {
    "qwen2.5-0.5b": "qwen2",
    "tinyllama-1.1b": "llama",
    "llama-3.2-1b": "llama",
    "qwen3-0.6b": "qwen3",
    "llama-3.2-3b": "llama",
    "qwen3-4b": "qwen3",
    "mistral-7b": "mistral",
    "qwen2.5-7b": "qwen2",
    "llama-3.1-8b": "llama",
    "qwen3-8b": "qwen3",
}


EXPERTS: Final = {"kinds": ("full-moe",), "experts": 4, "active_experts": 2, "expert_size": 8}


def config(name: str) -> dict[str, Any]:
    """Return the model's configuration as it is published, as far as shapes go."""
    model = MODELS[name]
    return {
        "model_type": LLAMA_LIKE[name],
        "architectures": [f"{LLAMA_LIKE[name].capitalize()}ForCausalLM"],
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "sliding_window": None,
        "max_position_embeddings": model.context_limit,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": model.tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def decode_rate(device: str, model: str, weights: WeightFormat, rows: int, context: int) -> float:
    """Return tokens per second of ``rows`` requests on one device, memory aside."""
    spec = MODELS[model].spec(weights)
    cost = device_cost(
        DEVICES[device].spec("d", MODELS[model], weights),
        spec,
        Workload(prompt_tokens=context, answer_tokens=1, context_tokens=2 * context),
        rows,
    )
    return rows / cost.decode[rows - 1].stage_seconds(0, spec.num_layers)


# --- models -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen2.5-0.5b", 494_032_768),
        ("tinyllama-1.1b", 1_100_048_384),
        ("llama-3.2-1b", 1_235_814_400),
        ("qwen3-0.6b", 596_049_920),
        ("llama-3.2-3b", 3_212_749_824),
        ("qwen3-4b", 4_022_468_096),
        ("mistral-7b", 7_248_023_552),
        ("qwen2.5-7b", 7_615_616_512),
        ("llama-3.1-8b", 8_030_261_248),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("gpt-oss-20b", 20_914_757_184),
    ],
)
def test_models_have_the_parameters_that_their_publishers_count(name: str, parameters: int) -> None:
    assert MODELS[name].num_parameters == parameters


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
def test_a_tied_matrix_is_held_once_or_twice_as_nodes_hold_it(weights: str) -> None:
    name = "qwen2.5-0.5b"
    is_shared = shared_bytes(parse_config(config(name)), weights) > 0
    assert (MODELS[name].spec(WeightFormat(weights)).shared_bytes > 0) is is_shared


@pytest.mark.parametrize("name", LLAMA_LIKE)
@pytest.mark.parametrize("weights", [WeightFormat.FLOAT32, WeightFormat.BFLOAT16])
def test_a_catalogue_model_weighs_what_its_checkpoint_weighs(
    name: str, weights: WeightFormat
) -> None:
    kv_format = "float32" if weights is WeightFormat.FLOAT32 else "bfloat16"
    served = model_spec(
        ModelManifest(
            name=name,
            revision="r",
            config=config(name),
            tensors={},
            weights=str(weights),
            kv_format=kv_format,
        )
    )
    spec = MODELS[name].spec(weights, kv_format)
    # Of nodes alone: they have no host memory, and may send KV in whole numbers.
    same = replace(spec, revision="r", ffn_bytes=(), packed_kv_bytes=served.packed_kv_bytes)
    assert same == served


def test_gpt_oss_alternates_windows_and_holds_its_published_kv() -> None:
    model = MODELS["gpt-oss-20b"]
    spec = model.spec(WeightFormat.MXFP4)
    assert spec.block_kinds == ("sliding-moe", "full-moe") * 12
    assert sum(spec.kv_bytes) == 49_152
    # As published, it runs in 16 GB.
    assert 12e9 < spec.weight_bytes < 16e9
    short = model.spec(WeightFormat.MXFP4, request_tokens=1280)
    assert sum(short.kv_bytes) == pytest.approx(49_152 * (0.5 + 0.5 * 0.1), rel=0.01)


def test_a_batch_soon_touches_every_expert() -> None:
    model = MODELS["gpt-oss-20b"]
    touched = [model.touched_experts("full-moe", rows) for rows in (1, 2, 8, 64)]
    assert touched[0] == pytest.approx(4)
    assert touched == sorted(touched)
    assert touched[1] < 8
    assert touched[-1] == pytest.approx(32, rel=0.01)
    assert MODELS["llama-3.2-1b"].touched_experts("full", 64) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ("sliding",), "window": 0}, "need a window"),
        ({"kinds": ("sliding-moe",), "window": 0}, "need a window"),
        ({"kinds": ("round",)}, "kinds are of full, sliding"),
        ({**EXPERTS, "active_experts": 0}, "active_experts, 1 to experts"),
        ({**EXPERTS, "active_experts": 5}, "active_experts, 1 to experts"),
        ({**EXPERTS, "expert_size": 0}, "need expert_size"),
    ],
)
def test_an_impossible_model_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MODELS["llama-3.2-1b"], **changes)


def test_an_unknown_kv_format_is_named() -> None:
    with pytest.raises(ValueError, match="'int3' is unknown; use one of float32"):
        MODELS["llama-3.2-1b"].spec(WeightFormat.INT8, kv_format="int3")


# --- devices ------------------------------------------------------------------------------


def test_every_number_of_the_catalogue_has_a_source() -> None:
    numbers = load_devices().numbers
    assert {number.source for number in numbers} == {"datasheet", "measured", "estimate"}
    assert len(numbers) > 90


def test_a_number_without_a_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "devices.toml"
    path.write_text('[a]\nname = "A"\nmemory_gigabytes = { value = 1 }\n', encoding="utf-8")
    with pytest.raises(UnsourcedNumberError, match=r"a\.memory_gigabytes needs a source"):
        load_devices(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bytes_per_second": 0}, "rates must be > 0"),
        ({"row_flops_per_second": 1e18}, "computes no faster"),
        ({"memory_bytes": -1}, "must not be negative"),
        ({"host_bytes_per_second": 0}, "host memory needs its rate"),
    ],
)
def test_an_impossible_device_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(DEVICES["rtx-5070"], **changes)


@pytest.mark.parametrize(
    ("model", "rows", "measured"),
    [
        ("qwen2.5-0.5b", 1, 8.25),
        ("qwen2.5-0.5b", 8, 26.1),
        ("tinyllama-1.1b", 1, 3.51),
        ("tinyllama-1.1b", 8, 9.2),
    ],
)
def test_predictions_are_within_thirty_per_cent_of_what_we_measured_on_a_machine(
    model: str, rows: int, measured: float
) -> None:
    predicted = decode_rate("vm-two-cores", model, WeightFormat.FLOAT32, rows, 150)
    assert predicted == pytest.approx(measured, rel=0.3)


@pytest.mark.parametrize(
    ("device", "measured"), [("jetson-agx-orin-32gb", 470), ("apple-m2-max-32gb", 694)]
)
def test_prefill_of_gpt_oss_is_within_half_of_what_the_paper_prints(
    device: str, measured: float
) -> None:
    model = MODELS["gpt-oss-20b"]
    spec = DEVICES[device].spec("d", model, WeightFormat.MXFP4)
    cost = device_cost(spec, model.spec(WeightFormat.MXFP4), Workload(prompt_tokens=576), 1)
    rate = 576 / cost.prefill.stage_seconds(0, 24)
    assert rate == pytest.approx(measured, rel=0.5)


@pytest.mark.parametrize("device", DEVICES)
def test_more_work_is_never_faster(device: str) -> None:
    model = MODELS["gpt-oss-20b"]
    spec = DEVICES[device].spec("d", model, WeightFormat.MXFP4)
    for times in (*spec.blocks.values(), *spec.offloaded.values(), spec.head, spec.embedding):
        prompts = [time.seconds for time in times.prefill]
        assert prompts == sorted(prompts)
        for one in times.decode:
            for other in times.decode:
                if one.batch <= other.batch and one.context <= other.context:
                    assert one.seconds <= other.seconds


def test_a_sliding_block_does_not_slow_down_with_context_and_a_full_one_does() -> None:
    spec = DEVICES["apple-m1-16gb"].spec("d", MODELS["gpt-oss-20b"], WeightFormat.MXFP4)

    def step(kind: str, context: int) -> float:
        times = spec.blocks[kind].decode
        return next(t.seconds for t in times if (t.batch, t.context) == (16, context))

    assert step("sliding-moe", 256) == step("sliding-moe", 16384)
    assert step("full-moe", 16384) > 1.2 * step("full-moe", 256)


def test_experts_in_host_memory_are_slower_and_only_where_memory_is_not_unified() -> None:
    model = MODELS["gpt-oss-20b"]
    card = DEVICES["rtx-5070"].spec("d", model, WeightFormat.MXFP4)
    own, host = (side["full-moe"].decode[0].seconds for side in (card.blocks, card.offloaded))
    assert host > 2 * own
    unified = DEVICES["apple-m2-max-32gb"].spec("d", model, WeightFormat.MXFP4)
    assert not unified.offloaded
    assert not unified.host_memory_bytes


def test_a_small_card_holds_a_large_model_with_its_experts_in_host_memory() -> None:
    model = MODELS["gpt-oss-20b"]
    workload = Workload(prompt_tokens=576, answer_tokens=588, context_tokens=2048)
    card = DEVICES["laptop-rtx-3060-mobile"].spec("d", model, WeightFormat.MXFP4)
    fog = Fog([card], model.spec(WeightFormat.MXFP4), workload, Objective(roles=Roles.MIXED))
    found = fog.options(1)
    assert found is not None
    assert 12 <= found.decode.offloads[0] < 24


def test_a_fog_by_data_sheet_has_energy_where_the_catalogue_knows_the_power() -> None:
    model, work = MODELS["qwen2.5-0.5b"], Workload(prompt_tokens=256, answer_tokens=128)
    predicted = {
        name: planner.plan(
            [DEVICES[name].spec("a", model, WeightFormat.INT8)], model.spec(WeightFormat.INT8), work
        ).predicted
        for name in ("raspberry-pi-5-8gb", "vm-two-cores")
    }
    assert predicted["vm-two-cores"].joules_per_token is None
    pi = predicted["raspberry-pi-5-8gb"]
    watts = (pi.joules_per_token or 0) * (pi.requests_per_second or 0) * 128
    # At full load it computes nearly all the time.
    assert watts == pytest.approx(8.8, rel=0.05)


def test_a_fog_of_catalogue_devices_is_planned_like_a_measured_one() -> None:
    model = MODELS["llama-3.2-1b"]
    wifi = Link(latency_seconds=0.02, bytes_per_second=5e6)
    pi = DEVICES["raspberry-pi-5-8gb"]
    devices = [
        *(pi.spec(f"pi-{i}", model, WeightFormat.BFLOAT16) for i in range(3)),
        pi.spec("far", model, WeightFormat.BFLOAT16, link=wifi, slowdown=4.0),
    ]
    workload = Workload(prompt_tokens=200, answer_tokens=100, context_tokens=1024, min_tps=2.0)
    plan = planner.exact(devices, model.spec(WeightFormat.BFLOAT16), workload)
    assert "certified optimal" in plan.optimality
    used = {stage.device for replica in plan.replicas for stage in replica.stages}
    assert {"pi-0", "pi-1", "pi-2"} <= used
    assert plan.predicted.requests_per_second is not None
    assert plan.predicted.requests_per_second > 0

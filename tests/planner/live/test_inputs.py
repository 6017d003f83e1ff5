"""Messages to values, and settings."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import msgspec.structs
import pytest

from broker.control import DecodeTime, LayerTimes, ModelManifest, PrefillTime
from broker.settings import SettingsError, read_settings
from broker.telemetry import Faults, Telemetry, parse_telemetry
from planner.live.conditions import Condition
from planner.live.events import LoadedSeen, ProfileSeen, StatusSeen
from planner.live.inputs import UnusableProfileError, device_spec, model_spec
from planner.live.knowledge import Knowledge
from planner.live.levels import Level
from planner.live.settings import PlannerSettings
from planner.live.target import NoModelError, chosen_models, fitted_workload
from planner.model import Bucket, DeviceSpec, Objective, Roles, Workload
from tests.planner import fogs
from tests.planner.live.noise import STEADY
from tests.support.checkpoints import FAMILIES

MODEL = model_spec(fogs.manifest())


def test_a_manifest_becomes_numbers() -> None:
    assert MODEL.num_layers == 8
    assert MODEL.kv_bytes == (2 * 2 * 16 * 4,) * 8
    assert MODEL.embedding_bytes == 512 * 64 * 4
    assert MODEL.shared_bytes == 0
    assert MODEL.activation_bytes == 64 * 4
    assert MODEL.context_limit == 512
    assert MODEL.weight_bytes == MODEL.stage_bytes(0, 8)


def test_kv_that_travels_in_whole_numbers_is_held_as_before_and_sent_in_fewer_bytes() -> None:
    packed = model_spec(msgspec.structs.replace(fogs.manifest(), kv_transfer="int8"))
    assert packed.kv_bytes == MODEL.kv_bytes == MODEL.sent_kv_bytes
    assert packed.sent_kv_bytes == (2 * 2 * (16 + 4),) * 8


def test_tied_ends_on_one_device_are_held_once() -> None:
    config = {**fogs.CONFIG, "tie_word_embeddings": True}
    tied = model_spec(ModelManifest(name="t", revision="r", config=config, tensors={}))
    assert MODEL.weight_bytes - tied.weight_bytes == MODEL.embedding_bytes
    assert tied.stage_bytes(0, 4) == MODEL.stage_bytes(0, 4)


def test_blocks_of_experts_are_a_kind_of_their_own_with_bytes_of_their_own() -> None:
    config = {**FAMILIES["qwen3_moe"], "num_hidden_layers": 3}
    mixed = model_spec(ModelManifest(name="m", revision="r", config=config, tensors={}))
    assert mixed.block_kinds == ("full-moe", "full", "full-moe")
    router, expert = 7 * 48, 3 * 48 * 28
    dense = 3 * 48 * 72
    assert mixed.block_bytes[0] - mixed.block_bytes[1] == 4 * (router + 7 * expert - dense)


def test_a_device_is_planned_with_the_speed_link_and_memory_of_now() -> None:
    profile = fogs.profile(memory_bytes=1_000_000)
    assert device_spec("a", profile, Condition(), MODEL).link == profile.link
    levels = {"speed": 0.5, "cores": 0.5, "latency": 0.1, "rate": 10.0, "room": 400_000.0}
    now = Condition({name: Level(value) for name, value in levels.items()})
    spec = device_spec("a", profile, now, MODEL)
    assert (spec.speed, spec.link.latency_seconds, spec.link.bytes_per_second) == (0.25, 0.1, 10.0)
    assert spec.memory_bytes == 400_000


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_revision": "other"}, "has not measured this revision"),
        ({"weights": "bfloat16"}, "measured bfloat16 weights, the model has float32"),
        ({"blocks": {"moe": fogs.layer_times(1.0)}}, r"did not measure blocks of kind \['full'\]"),
        (
            {"head": LayerTimes(prefill=[PrefillTime(0, 1)], decode=[DecodeTime(1, 1, 1)])},
            "a prompt or a batch of less than one",
        ),
        (
            {
                "head": LayerTimes(
                    prefill=[PrefillTime(1, float("inf"))], decode=[DecodeTime(1, 1, 1)]
                )
            },
            "not a finite number",
        ),
    ],
)
def test_a_profile_that_does_not_fit_is_refused_by_name(
    changes: dict[str, Any], reason: str
) -> None:
    profile = msgspec.structs.replace(fogs.profile(), **changes)
    with pytest.raises(UnusableProfileError, match=f"^a .*{reason}"):
        device_spec("a", profile, Condition(), MODEL)


def test_every_field_of_telemetry_can_be_read() -> None:
    full = Telemetry(**STEADY)
    assert None not in msgspec.structs.astuple(full)
    assert parse_telemetry(msgspec.json.encode(full)) == (full, ())


def test_refused_fields_are_news_once_for_each_device_and_not_without_end() -> None:
    faults = Faults()
    assert faults.news("a", ("speed_ratio", "late_steps")) == ("speed_ratio", "late_steps")
    assert faults.news("a", ("late_steps", "*")) == ("*",)
    assert faults.news("b", ("late_steps",)) == ("late_steps",)
    told = sum(len(faults.news(f"stranger-{each}", ("*",))) for each in range(20_000))
    assert told == 10_000 - 4


@pytest.mark.parametrize("payload", [b"", b"\xff", b"[]", b"3", b"[" * 5000])
def test_telemetry_that_is_no_object_is_refused_whole(payload: bytes) -> None:
    assert parse_telemetry(payload) == (Telemetry(), ("*",))


# --- knowledge ----------------------------------------------------------------------------


def test_values_of_older_sessions_are_ignored() -> None:
    knowledge = Knowledge()
    knowledge.hear(StatusSeen("a", fogs.status(5)), 1.0)
    knowledge.hear(StatusSeen("a", fogs.status(4)), 2.0)
    knowledge.hear(ProfileSeen("a", fogs.profile(0.1, session=5)), 3.0)
    knowledge.hear(ProfileSeen("a", fogs.profile(0.2, session=4)), 4.0)
    knowledge.hear(LoadedSeen("a", fogs.loaded(3, ["r/0"], 5)), 5.0)
    knowledge.hear(LoadedSeen("a", fogs.loaded(2, [], 5)), 6.0)
    knowledge.hear(LoadedSeen("a", fogs.loaded(9, [], 4)), 7.0)
    view = knowledge.devices["a"]
    assert view.status == fogs.status(5)
    assert view.profile == fogs.profile(0.1, session=5)
    assert view.loaded == fogs.loaded(3, ["r/0"], 5)
    assert knowledge.changed_seconds == 3.0


def test_what_was_loaded_in_an_earlier_session_is_gone() -> None:
    knowledge = Knowledge()
    knowledge.hear(StatusSeen("a", fogs.status(1)), 0.0)
    knowledge.hear(LoadedSeen("a", fogs.loaded(1, ["r/0"], 1)), 0.0)
    assert knowledge.devices["a"].has_loaded({"r/0"})
    assert not knowledge.devices["a"].has_loaded({"r/0", "q/1"})
    knowledge.hear(StatusSeen("a", fogs.status(2)), 1.0)
    assert not knowledge.devices["a"].has_loaded({"r/0"})


def test_a_cleared_status_forgets_the_device() -> None:
    knowledge = Knowledge()
    knowledge.hear(StatusSeen("a", fogs.status()), 0.0)
    knowledge.hear(StatusSeen("a", None), 1.0)
    assert knowledge.devices == {}


# --- values and settings ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(4096, (128, 128, 2048)), (200, (100, 100, 200)), (2, (1, 1, 2)), (300, (128, 128, 300))],
)
def test_a_workload_fits_into_the_models_context(
    limit: int, expected: tuple[int, int, int]
) -> None:
    work = Workload().fitted_to(limit)
    assert (work.prompt_tokens, work.answer_tokens, work.context_tokens) == expected


def test_chunks_stay_small_messages() -> None:
    assert fitted_workload(Workload(), fogs.model(activation_bytes=256)).chunk_tokens == 128
    assert fitted_workload(Workload(), fogs.model(activation_bytes=16384)).chunk_tokens == 32
    assert fitted_workload(Workload(), fogs.model(activation_bytes=1 << 24)).chunk_tokens == 1


def test_no_model_is_an_error_with_the_remedy() -> None:
    with pytest.raises(NoModelError, match="waiting for the model x: no gateway"):
        chosen_models({"demo": fogs.manifest()}, "x")


@pytest.mark.parametrize(
    "build",
    [
        lambda: Workload(prompt_tokens=0),
        lambda: Workload(min_tps=0),
        lambda: Workload(min_tps=float("nan")),
        lambda: Workload(context_tokens=1),
        lambda: Objective(max_slots=0),
        lambda: Objective(exact_devices=-1),
        lambda: Objective(population=2),
        lambda: Objective(elites=0),
        lambda: fogs.device("a", 1.0, -1),
        lambda: fogs.device("a", 1.0, 1, speed=0.0),
        lambda: fogs.device("a", 1.0, 1, blocks={}),
        lambda: fogs.model(0),
        lambda: fogs.model(2, block_bytes=(1,)),
        lambda: fogs.model(2, head_bytes=-1),
    ],
)
def test_values_that_make_no_sense_are_refused(build: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        build()


def test_settings_come_from_the_environment() -> None:
    environ = {
        "E2LLM_BROKER": "mqtt://planner:x@host",
        "E2LLM_SITE": "barn",
        "E2LLM_REDIS": "redis://host/0",
        "E2LLM_PLANNER_ROLES": "auto",
        "E2LLM_PLANNER_MIN_TPS": "15",
        "E2LLM_PLANNER_EXPECT_DEVICES": "6",
    }
    found = read_settings(PlannerSettings, "E2LLM_PLANNER_", environ)
    assert (found.site, found.redis, found.expect_devices) == ("barn", "redis://host/0", 6)
    assert found.workload.min_tps == 15.0
    assert found.objective.roles is Roles.AUTO


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("E2LLM_PLANNER_ROLES", "some"),
        ("E2LLM_PLANNER_SPEED_THRESHOLD", "1.5"),
        ("E2LLM_PLANNER_SPEED_SECONDS", "0"),
        ("E2LLM_PLANNER_REST_SECONDS", "-1"),
        ("E2LLM_PLANNER_LEASE_SECONDS", "0"),
        ("E2LLM_PLANNER_MIN_GAIN", "-1"),
        ("E2LLM_PLANNER_MIN_TPS", "0"),
        ("E2LLM_PLANNER_MAX_SLOTS", "0"),
        ("E2LLM_PLANNER_TYPO", "1"),
    ],
)
def test_a_wrong_setting_is_refused(name: str, value: str) -> None:
    environ = {"E2LLM_BROKER": "mqtt://host", name: value}
    with pytest.raises(SettingsError):
        read_settings(PlannerSettings, "E2LLM_PLANNER_", environ)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "E2LLM_BROKER is not set"),
        ({"E2LLM_BROKER": "http://host"}, "mqtt://user:password@host:port"),
        ({"E2LLM_BROKER": "mqtt://host", "E2LLM_LOG": "loud"}, "E2LLM_LOG='loud'"),
        ({"E2LLM_BROKER": "mqtt://host", "E2LLM_PLANNER_SEED": "x"}, "E2LLM_PLANNER_SEED"),
    ],
)
def test_the_process_stops_with_the_name_of_a_wrong_setting(
    environ: dict[str, str], message: str
) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("E2LLM_")}
    done = subprocess.run(
        [sys.executable, "-m", "planner"], env={**clean, **environ}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_device_spec_is_frozen() -> None:
    spec: DeviceSpec = fogs.device("a", 1.0, 1)
    with pytest.raises(AttributeError):
        spec.speed = 2.0  # type: ignore[misc]


def test_power_comes_from_the_profile_and_half_of_it_counts_as_unknown() -> None:
    known = msgspec.structs.replace(fogs.profile(), idle_watts=3.0, busy_watts=8.0)
    spec = device_spec("a", known, Condition(), MODEL)
    assert (spec.idle_watts, spec.busy_watts) == (3.0, 8.0)
    for half in ({"busy_watts": None}, {"busy_watts": 1.0}, {"busy_watts": float("inf")}):
        odd = msgspec.structs.replace(known, **half)
        assert device_spec("a", odd, Condition(), MODEL).idle_watts is None


def test_lengths_and_targets_are_settings() -> None:
    environ = {
        "E2LLM_BROKER": "mqtt://b",
        "E2LLM_PLANNER_BUCKETS": "3:100+40, 1:500+200",
        "E2LLM_PLANNER_KV_TRANSFER": "false",
        "E2LLM_PLANNER_TTFT_SECONDS": "2.5",
        "E2LLM_PLANNER_TPOT_SECONDS": "0.2",
        "E2LLM_PLANNER_HORIZON_SECONDS": "600",
        "E2LLM_PLANNER_ENERGY_WEIGHT": "0.05",
        "E2LLM_PLANNER_NEVER_BEHIND": "false",
    }
    found = read_settings(PlannerSettings, "E2LLM_PLANNER_", environ)
    assert found.workload.buckets == (Bucket(0.75, 100, 40), Bucket(0.25, 500, 200))
    assert found.workload.prompt_tokens == 200
    assert found.objective == Objective(
        counts_kv=False,
        ttft_seconds=2.5,
        tpot_seconds=0.2,
        horizon_seconds=600.0,
        energy_weight=0.05,
        rival_load=None,
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("BUCKETS", "1:100", "expected share:prompt"),
        ("TTFT_SECONDS", "-1", "ttft_seconds must be a number greater than 0"),
        ("HORIZON_SECONDS", "-1", "horizon_seconds must be a number that is not negative"),
    ],
)
def test_a_senseless_objective_is_a_wrong_setting(name: str, value: str, message: str) -> None:
    environ = {"E2LLM_BROKER": "mqtt://b", f"E2LLM_PLANNER_{name}": value}
    with pytest.raises(SettingsError, match=message):
        read_settings(PlannerSettings, "E2LLM_PLANNER_", environ)

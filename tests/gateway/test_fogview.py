import msgspec
import pytest

from broker.codec import encode_control
from broker.control import (
    DecodeTime,
    DeviceProfile,
    DeviceState,
    DeviceStatus,
    LayerTimes,
    Link,
    ModelManifest,
    OwnerRules,
    PrefillTime,
)
from broker.plan import (
    IdleDevice,
    Loaded,
    LoadState,
    Plan,
    PlannerStatus,
    PlanState,
    Rates,
    ReadFrom,
    SingleDevice,
)
from broker.telemetry import Reading, Telemetry
from broker.topics import DEVICE_PROFILE, DEVICE_TELEMETRY
from broker.transport import Received
from gateway.fogview import FogView
from gateway.intake import Intake
from gateway.report import devices_body, load_progress, plan_body, readiness
from tests.gateway.scripted_fog import plan, replica, view_of

READY, LOST = DeviceState.READY, DeviceState.LOST
ONE = replica("one", ["a", "b"])
TWO = replica("two", ["c"])
MODEL = ModelManifest(name="tiny", revision="rev", config={}, tensors={})


def status(state: DeviceState = READY, session: int = 1) -> DeviceStatus:
    return DeviceStatus(state=state, session=session, pid=42)


def loaded(
    *stages: str,
    session: int = 1,
    version: int = 1,
    state: LoadState = LoadState.LOADED,
    error: str | None = None,
    got: int = 50,
) -> Loaded:
    return Loaded(
        session=session,
        version=version,
        state=state,
        stages=list(stages),
        tensors=["t"],
        loaded_bytes=got,
        total_bytes=100,
        error=error,
    )


# --- fences ------------------------------------------------------------------------------------


def test_an_older_plan_never_replaces_a_newer_one() -> None:
    view = FogView().with_plan(plan(ONE, version=2))

    assert view.with_plan(plan(TWO, version=1)) is view
    assert view.with_plan(plan(TWO, version=3)).active == plan(TWO, version=3)


def test_a_plan_in_preparation_stands_beside_the_active_one_until_it_is_active() -> None:
    view = FogView().with_plan(plan(ONE, version=1))
    coming = plan(TWO, version=2, state=PlanState.PREPARING)

    view = view.with_plan(coming)
    assert (view.active, view.preparing) == (plan(ONE, version=1), coming)
    assert view.replicas == (ONE,)
    view = view.with_plan(plan(TWO, version=2))

    assert (view.active, view.preparing) == (plan(TWO, version=2), None)


def test_a_late_copy_of_a_preparing_plan_changes_nothing_once_it_is_active() -> None:
    view = FogView().with_plan(plan(ONE, version=2))

    assert view.with_plan(plan(ONE, version=2, state=PlanState.PREPARING)) is view


def test_an_older_preparing_plan_does_not_replace_a_newer_one() -> None:
    view = FogView().with_plan(plan(ONE, version=3, state=PlanState.PREPARING))

    assert view.with_plan(plan(TWO, version=2, state=PlanState.PREPARING)) is view


def test_a_late_will_of_an_earlier_session_does_not_make_a_device_lost() -> None:
    view = FogView().with_status("a", status(session=5), 0.0)

    assert view.with_status("a", status(LOST, session=4), 1.0) is view
    assert not view.with_status("a", status(LOST, session=5), 1.0).devices["a"].is_ready


def test_what_a_device_has_loaded_is_ordered_by_session_and_version() -> None:
    view = FogView().with_loaded("a", loaded("one/0", session=2, version=3), 0.0)

    assert view.with_loaded("a", loaded(session=2, version=2), 0.0) is view
    assert view.with_loaded("a", loaded(session=1, version=9), 0.0) is view
    assert view.with_loaded("a", loaded(session=3, version=1), 0.0) is not view


def test_a_planners_late_will_is_ignored() -> None:
    view = FogView().with_planner(PlannerStatus(state=READY, session=9))

    assert view.with_planner(PlannerStatus(state=LOST, session=8)) is view


def test_a_ready_planner_counts_whatever_its_clock_said_when_it_started() -> None:
    view = FogView().with_planner(PlannerStatus(state=LOST, session=9))
    alive = PlannerStatus(state=READY, session=8)
    view = view.with_planner(alive)
    assert view.planner == alive
    # Repeated, it is no news.
    assert view.with_planner(alive) is view


# --- completeness ------------------------------------------------------------------------------


def test_a_replica_is_complete_when_every_device_is_ready() -> None:
    assert view_of(ONE, TWO).complete_replicas == (ONE, TWO)
    partial = view_of(ONE, TWO, states={"b": LOST})
    assert partial.complete_replicas == (TWO,)
    assert partial.absent_devices() == ["b"]
    assert FogView().with_plan(plan(ONE)).complete_replicas == ()


def test_a_restarted_device_is_incomplete_until_it_has_loaded_its_stage_again() -> None:
    view = view_of(TWO).with_loaded("c", loaded("two/0"), 0.0)
    assert view.complete_replicas == (TWO,)

    view = view.with_status("c", status(session=2), 0.0)
    assert view.complete_replicas == ()
    view = view.with_loaded("c", loaded(session=2, state=LoadState.LOADING), 0.0)
    assert view.complete_replicas == ()
    view = view.with_loaded("c", loaded("two/0", session=2), 0.0)

    assert view.complete_replicas == (TWO,)


def test_a_plan_for_another_model_serves_nothing() -> None:
    view = view_of(TWO)
    other = ModelManifest(name="x", revision="other", config={}, tensors={})

    assert view.with_model(MODEL).complete_replicas == (TWO,)
    assert view.with_model(other).complete_replicas == ()


@pytest.mark.parametrize("field", ["weights", "kv_format", "kv_transfer"])
def test_a_plan_in_other_formats_than_the_model_is_served_in_serves_nothing(field: str) -> None:
    other = msgspec.structs.replace(MODEL, **{field: "int8"})

    assert view_of(TWO).with_model(other).complete_replicas == ()


def test_a_device_whose_status_was_cleared_is_forgotten() -> None:
    view = view_of(TWO).without_device("c")

    assert view.complete_replicas == ()
    assert view.sessions([TWO]) == {}


# --- what the API shows ------------------------------------------------------------------------


def full_plan() -> Plan:
    return Plan(
        version=4,
        state=PlanState.ACTIVE,
        model="tiny",
        revision="rev",
        weights="float32",
        kv_format="float32",
        chunk_tokens=32,
        context_tokens=512,
        replicas=[ONE],
        idle=[IdleDevice(device="slow", reason="would lower throughput")],
        reasons={"a": "fastest"},
        predicted=Rates(decode_tokens_per_second=9.0),
        best_single_device=SingleDevice(device="a", predicted=Rates(tpot_seconds=0.5)),
        optimality="certified optimal",
        trigger="start",
    )


def test_the_plan_is_shown_with_layers_predictions_and_measurements_side_by_side() -> None:
    body = plan_body(FogView().with_plan(full_plan()), {"ttft_seconds": 0.2})

    assert (body["version"], body["state"], body["model"], body["weights"]) == (
        4,
        "active",
        "tiny",
        "float32",
    )
    assert body["replicas"][0]["stages"] == [
        {
            "device": "a",
            "layers": [0, 3],
            "embedding": True,
            "head": False,
            "predicted_seconds": 0.025,
            "measured": {"decode": None, "prefill": None},
        },
        {
            "device": "b",
            "layers": [3, 6],
            "embedding": False,
            "head": True,
            "predicted_seconds": 0.025,
            "measured": {"decode": None, "prefill": None},
        },
    ]
    assert body["replicas"][0]["role"] == "both"
    assert body["idle"] == [{"device": "slow", "reason": "would lower throughput"}]
    assert body["predicted"]["decode_tokens_per_second"] == 9.0
    assert body["measured"] == {"ttft_seconds": 0.2}
    assert body["best_single_device"]["device"] == "a"
    assert body["optimality"] == "certified optimal"


def profile(arithmetic: str) -> DeviceProfile:
    times = LayerTimes(prefill=[PrefillTime(1, 1.0)], decode=[DecodeTime(1, 1, 1.0)])
    return DeviceProfile(
        session=1,
        model_revision="rev",
        weights="int8",
        threads=1,
        memory_bytes=1,
        blocks={"full": times},
        embedding=times,
        head=times,
        link=Link(latency_seconds=0.0, bytes_per_second=1.0),
        chunk_tokens=128,
        arithmetic=arithmetic,
    )


def test_the_local_time_of_a_device_is_that_of_its_profile_and_utc_before_it_has_one() -> None:
    said = msgspec.structs.replace(profile("x"), owner=OwnerRules(utc_offset_seconds=3600))

    view = FogView().with_status("a", status(), 0.0)

    assert view.utc_offset_of("a") == 0
    assert view.with_profile("a", said, 1.0).utc_offset_of("a") == 3600


def test_devices_of_the_plan_that_compute_differently_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    intake = Intake("g")
    intake.view = FogView().with_plan(full_plan())
    for device, width in (("a", 8), ("slow", 6), ("b", 8), ("b", 7)):
        payload = encode_control(profile(f"x86_64, codes of {width} bits"))
        intake.take(Received(DEVICE_PROFILE.path("site", device=device), payload), 0.0)
        body = plan_body(intake.view, {})
        assert (body["arithmetic_problem"] is not None) == (width == 7)
        assert (caplog.text != "") == (width == 7), "a device without a stage does not count"

    names = ["x86_64, codes of 7 bits", "x86_64, codes of 8 bits"]
    assert body["arithmetic"] == names
    assert "; ".join(names) in body["arithmetic_problem"]
    assert body["arithmetic_problem"] in caplog.text


def test_whoever_mends_an_agent_finds_each_refused_field_in_the_log_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    intake = Intake("g")
    path = DEVICE_TELEMETRY.path("site", device="a")
    for wrong in (b'{"speed_ratio": 0}', b'{"speed_ratio": 0, "battery_ratio": 9e99}') * 4:
        intake.take(Received(path, wrong), 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        f"dropped a part of {path}: refused speed_ratio",
        f"dropped a part of {path}: refused battery_ratio",
    ]
    assert intake.drops.counts[DEVICE_TELEMETRY.template] == 8


def test_without_a_plan_the_body_has_the_same_keys() -> None:
    empty, full = plan_body(FogView(), {}), plan_body(FogView().with_plan(full_plan()), {})

    assert empty["state"] == "none"
    assert empty["version"] is None
    assert set(empty) <= set(full)


def test_the_plan_says_how_many_fields_of_telemetry_the_planner_refused() -> None:
    view = FogView().with_plan(full_plan())
    assert plan_body(view, {})["refused_fields"] == 0
    view = view.with_planner(PlannerStatus(state=READY, session=1, refused_fields=4))
    assert plan_body(view, {})["refused_fields"] == 4


def test_a_plan_in_preparation_is_shown_with_its_progress() -> None:
    view = FogView().with_plan(plan(ONE, version=1))
    view = view.with_plan(plan(TWO, version=2, state=PlanState.PREPARING))
    view = view.with_loaded("c", loaded(state=LoadState.LOADING, got=25), 0.0)

    assert plan_body(view, {})["preparing"] == {
        "version": 2,
        "model": "tiny",
        "trigger": "",
        "progress": 0.25,
    }
    assert load_progress(view, plan(ONE)) is None


def test_devices_are_shown_with_what_they_hold_and_how_long_they_are_silent() -> None:
    view = FogView().with_status("b", status(), 0.0).with_status("a", status(), 1.0)
    view = view.with_loaded("a", loaded("one/0", got=100), 2.0)
    view = view.with_telemetry("a", Reading(Telemetry(speed_ratio=0.5)), 3.0)
    view = view.with_telemetry("a", Reading(Telemetry(battery_ratio=0.5), ("x", "y")), 3.0)

    first, second = devices_body(view, now=5.0)

    assert (first["id"], second["id"]) == ("a", "b")
    assert first["last_seen_seconds"] == 2.0
    assert first["state"] == "ready"
    assert first["pid"] == 42
    assert (first["stages"], first["tensors"], first["loaded_bytes"]) == (["one/0"], ["t"], 100)
    assert first["progress"] == 1.0
    # Node and thermometer speak for one device.
    assert first["telemetry"]["speed_ratio"] == first["telemetry"]["battery_ratio"] == 0.5
    assert first["refused_fields"] == 2
    assert second["load_state"] is None


# --- readiness ---------------------------------------------------------------------------------


def ready_view() -> FogView:
    return view_of(ONE).with_model(MODEL).with_planner(PlannerStatus(state=READY, session=1))


def test_a_complete_replica_makes_the_gateway_ready_whatever_the_planner_says() -> None:
    view = ready_view().with_planner(PlannerStatus(state=LOST, session=2, problem="Redis is gone"))

    answer = readiness(view, None, {"journal": False})

    assert answer.ready
    assert answer.details["journal"] is False
    assert answer.details["planner_problem"] == "Redis is gone"


def test_readiness_lists_what_each_loading_device_has_and_from_where() -> None:
    source = ReadFrom(source="neighbour b", num_bytes=25)
    loading = msgspec.structs.replace(loaded(state=LoadState.LOADING, got=25), sources=[source])
    view = ready_view().with_status("c", status(), 0.0).with_loaded("c", loading, 0.0)
    view = view.with_status("d", status(LOST), 0.0).with_loaded("d", loading, 0.0)

    details = readiness(view, None, {}).details

    told = {"source": "neighbour b", "num_bytes": 25, "problems": 0, "last_problem": None}
    assert details["loading"] == {
        "c": {"loaded_bytes": 25, "total_bytes": 100, "progress": 0.25, "sources": [told]}
    }


@pytest.mark.parametrize("redis", [True, False])
def test_readiness_says_whether_the_planner_reaches_redis(redis: bool) -> None:
    view = ready_view().with_planner(PlannerStatus(state=READY, session=2, redis=redis))
    assert readiness(view, None, {}).details["planner_redis"] is redis


def test_readiness_does_not_guess_before_the_planner_was_heard() -> None:
    assert readiness(FogView(), None, {}).details["planner_redis"] is None


def test_without_the_bus_nothing_is_ready() -> None:
    answer = readiness(ready_view(), "no connection", {})

    assert (answer.ready, answer.reason) == (False, "no connection")


def waiting(view: FogView) -> FogView:
    """The same knowledge, before any plan."""
    return FogView(None, None, view.devices, view.planner, view.model)


def damaged(view: FogView) -> FogView:
    error = "tensor model.norm.weight: checksum differs"
    return view.with_loaded("a", loaded(state=LoadState.FAILED, error=error), 0.0)


@pytest.mark.parametrize(
    ("view", "reason", "progress"),
    [
        (FogView(), "no model is published yet", None),
        (FogView().with_model(MODEL), "no device is connected", None),
        (waiting(ready_view()), "devices measure themselves: a, b", 0.0),
        (
            waiting(ready_view())
            .with_loaded("a", loaded(state=LoadState.MEASURING), 0.0)
            .with_loaded("b", loaded(), 0.0),
            "devices measure themselves: a",
            0.5,
        ),
        (
            waiting(ready_view()).with_planner(
                PlannerStatus(state=READY, session=2, problem="3 MB of memory are missing")
            ),
            "planner: 3 MB of memory are missing",
            None,
        ),
        (
            waiting(ready_view())
            .with_plan(plan(ONE, state=PlanState.PREPARING))
            .with_loaded("a", loaded(got=25), 0.0)
            .with_loaded("b", loaded(got=75), 0.0),
            "nodes load the layers of plan 1",
            0.5,
        ),
        (
            damaged(waiting(ready_view())),
            "device a cannot load its layers: tensor model.norm.weight: checksum differs",
            None,
        ),
        (
            ready_view().with_status("b", status(LOST), 0.0),
            "no replica is complete; devices that do not answer: b",
            None,
        ),
        (
            ready_view().with_loaded("b", loaded(state=LoadState.LOADING), 0.0),
            "no replica is complete; devices that still load: b",
            0.5,
        ),
    ],
)
def test_readiness_names_the_first_thing_in_the_way(
    view: FogView, reason: str, progress: float | None
) -> None:
    answer = readiness(view, None, {})

    assert (answer.ready, answer.reason, answer.progress) == (False, reason, progress)


def test_measured_devices_without_a_plan_wait_for_the_planner() -> None:
    view = waiting(ready_view()).with_loaded("a", loaded(), 0.0).with_loaded("b", loaded(), 0.0)

    assert readiness(view, None, {}).reason == "the planner has not published a plan yet"
    gone = view.with_planner(PlannerStatus(state=LOST, session=2))
    assert readiness(gone, None, {}).reason == "no planner is connected"

"""The planner's life: first plan, changes, failures, restarts, two planners."""

from __future__ import annotations

from typing import Any

import pytest

from broker.control import DeviceState, ModelManifest
from broker.plan import LoadState, PlannerStatus, PlanState, Role
from broker.telemetry import Telemetry
from planner.live.events import (
    AssignmentSeen,
    BusDown,
    BusUp,
    Event,
    LoadedSeen,
    ModelSeen,
    PlannerSeen,
    PlanSeen,
    ProfileSeen,
    StatusSeen,
    StoreSeen,
)
from tests.planner import fogs
from tests.planner.live.harness import Bench, active, hold_of


def serving(**profile: Any) -> Bench:
    bench = Bench().connect().model().join(*"abcdef", **profile).run(8)
    assert active(bench)
    return bench


# --- the first plan -----------------------------------------------------------------------


def test_six_devices_get_separate_roles_and_every_stage_is_loaded_before_it_is_active() -> None:
    bench = Bench().connect().model().join(*"abcdef")
    bench.obedient = False
    bench.run(5)
    assert [plan.state for plan in bench.plans] == [PlanState.PREPARING]
    assert "waiting for a, b, c, d, e, f" in (bench.problem or "")
    bench.load("a", "b", "c", "d", "e")
    bench.run(2)
    assert not active(bench)
    bench.load("f")
    bench.run(1)
    assert bench.plan.state is PlanState.ACTIVE
    assert bench.plan.version == 1
    assert {replica.role for replica in bench.plan.replicas} == {Role.PREFILL, Role.DECODE}
    assert bench.problem is None
    assert set(bench.plan.reasons) == set("abcdef")


def test_energy_counts_once_every_device_says_its_power() -> None:
    def joined(*dark: str) -> Bench:
        bench = Bench(energy_weight=1.0).connect().model()
        for name in "abcdef":
            watts: dict[str, Any] = {} if name in dark else {"idle_watts": 2, "busy_watts": 5}
            bench.join(name, **watts)
        return bench.run(8)

    bench = joined("c", "e")
    assert active(bench)
    assert bench.plan.predicted.joules_per_token is None
    (decision,) = (text for text in bench.decisions if text.startswith("plan 1"))
    assert decision.endswith("energy does not count, as nobody says the power of c, e")
    assert (joined().plan.predicted.joules_per_token or 0) > 0


def test_without_a_model_the_status_says_what_is_missing() -> None:
    bench = Bench().connect().join("a").run(4)
    assert bench.problem == "waiting for the model: no gateway has published it"
    assert bench.plans == []


def test_a_model_that_is_not_supported_is_named() -> None:
    bench = Bench().connect()
    config = {**fogs.CONFIG, "model_type": "mamba", "architectures": ["MambaForCausalLM"]}
    strange = ModelManifest(name="demo", revision="rev-1", config=config, tensors={})
    bench.handle(ModelSeen("demo", strange))
    bench.join("a").run(4)
    assert (bench.problem or "").startswith("the model demo cannot be planned")


def test_of_two_models_in_use_a_setting_may_choose_one() -> None:
    chosen = Bench(model="demo").connect().model().join(*"abc")
    chosen.handle(ModelSeen("other", fogs.manifest("rev-2", "other")))
    chosen.run(4)
    assert active(chosen)


def test_the_first_plan_waits_for_the_expected_devices_and_says_how_many_are_there() -> None:
    bench = Bench(expect_devices=6).connect().model().join(*"abcd").run(20)
    assert bench.plans == []
    assert bench.problem == "waiting for devices: 4 of 6 profiles"
    bench.join("e", "f").run(4)
    assert active(bench)
    assert bench.devices() <= set("abcdef")


def test_the_wait_for_expected_devices_ends() -> None:
    bench = Bench(expect_devices=6, wait_seconds=30).connect().model().join(*"abcd").run(28)
    assert bench.plans == []
    assert active(bench.run(6))


def test_the_first_plan_waits_for_a_device_that_still_measures() -> None:
    bench = Bench(wait_seconds=30).connect().model().join(*"abc")
    bench.handle(StatusSeen("slow", fogs.status()))
    bench.run(10)
    assert bench.problem == "waiting for devices: 3 of 4 profiles; measuring: slow"
    bench.run(25)
    assert active(bench)
    assert any(e.device == "slow" and "measured" in e.reason for e in bench.plan.idle)


def test_too_little_memory_is_said_in_bytes() -> None:
    bench = Bench().connect().model().join("a", memory_bytes=300_000)
    bench.join("b", memory_bytes=200_000).run(5)
    assert bench.plans == []
    assert bench.problem is not None
    assert bench.problem.startswith("no plan: the model needs ")
    assert "offers 500.0 kB on 2 devices" in bench.problem
    assert "are missing" in bench.problem
    # More memory ends it.
    bench.join("c", memory_bytes=2_000_000).run(5)
    assert active(bench)
    assert bench.statuses[-1].problem is None


def test_a_device_of_another_protocol_is_left_out_with_the_reason() -> None:
    bench = Bench().connect().model().join(*"abcdef")
    other = type(fogs.status())(state=DeviceState.READY, session=1, protocol="2.0")
    bench.handle(StatusSeen("new", other))
    bench.handle(ProfileSeen("new", fogs.profile()))
    bench.run(5)
    assert "new" not in bench.devices()
    assert any(e.device == "new" and "protocol" in e.reason for e in bench.plan.idle)


def test_a_profile_of_another_revision_does_not_count() -> None:
    bench = Bench(expect_devices=2).connect().model().join("a")
    bench.join("b", revision="rev-0").run(5)
    assert bench.problem == "waiting for devices: 1 of 2 profiles; measuring: b"


# --- changes ------------------------------------------------------------------------------


def test_a_slower_device_starts_planning_when_it_was_slow_for_some_seconds() -> None:
    bench = serving()
    bench.telemetry["a"] = fogs_telemetry(0.25)
    bench.run(2)
    assert bench.plan.version == 1
    bench.run(4)
    assert bench.num_plans_made == 2
    assert "a is 4 times slower than planned" in bench.plan.trigger


def test_one_slow_look_is_a_hiccup() -> None:
    bench = serving()
    for ratio in (0.25, 1.0, 0.25, 1.0, 0.25, 1.0):
        bench.telemetry["a"] = fogs_telemetry(ratio)
        bench.look()
        bench.run(0.5, step=0.25)
    assert bench.plan.version == 1


def test_a_small_change_of_speed_changes_nothing() -> None:
    bench = serving().slow_down("a", 0.8).run(20)
    assert bench.plan.version == 1


def test_a_slow_device_is_not_planned_for_again_and_again() -> None:
    bench = serving().slow_down("a", 0.25).run(60)
    assert bench.num_plans_made == 2
    bench.slow_down("a", 1.0).run(60)
    assert bench.num_plans_made == 3


def test_old_stages_are_held_until_the_new_plan_is_active_and_drained() -> None:
    bench = serving(memory_bytes=2_600_000)
    old = {r.id for r in bench.plan.replicas}
    bench.obedient = False
    bench.slow_down("a", 0.1).run(6)
    assert not active(bench)
    new = {r.id for r in bench.plan.replicas}
    assert old != new
    for name in bench.devices(bench.plans[1]):
        assignment = bench.assignments[name]
        prepared = {s.replica for s in assignment.prepare}
        held = hold_of(bench.assignments, name)
        assert (held | prepared) & new
    assert any(hold_of(bench.assignments, name) & old for name in "abcdef")
    bench.obedient = True
    bench.run(2)
    assert active(bench)
    # Requests that run on old replicas end there.
    assert any(hold_of(bench.assignments, name) & old - new for name in "abcdef")
    bench.run(10)
    for name in "abcdef":
        assert hold_of(bench.assignments, name) <= new
        assert bench.assignments[name].prepare == []


def test_a_lost_device_leads_to_a_plan_at_once() -> None:
    bench = serving()
    gone = bench.plan.replicas[0].stages[0].device
    bench.leave(gone).run(0.5)
    assert bench.plan.version == 2
    assert gone not in bench.devices()
    assert bench.assignments[gone].hold == []
    assert f"{gone} left" in bench.plan.trigger


def test_a_device_that_joins_gets_a_place_and_a_version() -> None:
    bench = serving().join("g", seconds=0.0002, memory_bytes=2_000_000).run(5)
    assert bench.plan.version == 2
    assert active(bench)
    assert "g" in bench.devices()
    assert bench.plan.trigger.startswith("g joined")


def test_a_device_that_gains_little_stays_idle_and_nothing_is_moved() -> None:
    bench = serving()
    old = bench.plan
    bench.join("slow", seconds=0.2, memory_bytes=400_000).run(10)
    assert bench.plan.version == 2
    assert active(bench)
    assert [r.id for r in bench.plan.replicas] == [r.id for r in old.replicas]
    assert [entry.device for entry in bench.plan.idle] == ["slow"]
    assert bench.plan.reasons["slow"].startswith("idle: ")
    # And it is not considered again with every tick.
    assert bench.run(30).plan.version == 2


def test_a_lost_idle_device_needs_no_plan() -> None:
    bench = serving().join("slow", seconds=0.2, memory_bytes=400_000).run(10)
    version = bench.plan.version
    assert bench.leave("slow").run(10).plan.version == version


def test_a_device_lost_while_a_plan_is_prepared_leads_to_the_next_plan() -> None:
    bench = Bench().connect().model().join(*"abcdef")
    bench.obedient = False
    bench.run(4)
    assert not active(bench)
    gone = bench.plan.replicas[0].stages[0].device
    bench.leave(gone).run(1)
    assert bench.plan.version == 2
    bench.obedient = True
    bench.run(2)
    assert active(bench)
    assert gone not in bench.devices()


def test_a_new_revision_of_the_model_is_planned_when_devices_have_measured_it() -> None:
    bench = serving().model("rev-2").run(5)
    assert bench.plan.revision == "rev-1"
    assert bench.problem == ("waiting for devices: 0 of 6 profiles; measuring: a, b, c, d, e, f")
    bench.join(*"abcdef", revision="rev-2").run(5)
    assert bench.plan.revision == "rev-2"
    assert bench.plan.version == 2
    assert active(bench)
    assert all(a.revision == "rev-2" for a in bench.assignments.values())


@pytest.mark.parametrize("formats", [{"kv_format": "bfloat16"}, {"kv_transfer": "int8"}])
def test_another_kv_format_is_a_plan_with_replicas_of_its_own(formats: dict[str, str]) -> None:
    bench = serving()
    old = {replica.id for replica in bench.plan.replicas}
    bench.model(**formats).run(10)
    assert (bench.plan.version, active(bench)) == (2, True)
    assert not old & {replica.id for replica in bench.plan.replicas}
    for assignment in bench.assignments.values():
        assert {name: getattr(assignment, name) for name in formats} == formats
        assert not old & {stage.replica for stage in assignment.hold}


def test_a_restarted_planner_is_not_content_with_a_plan_in_another_kv_format() -> None:
    first = serving()
    second = Bench(session=200).connect()
    first.retained_for(second)
    second.model(kv_format="bfloat16").run(10)
    assert (second.plan.version, second.plan.kv_format) == (2, "bfloat16")


def test_a_model_that_changes_while_a_plan_is_prepared_takes_nothing_from_the_one_that_serves() -> (
    None
):
    bench = serving(memory_bytes=2_600_000)
    bench.obedient = False
    bench.slow_down("a", 0.1).run(6)
    assert not active(bench)
    held = {name: hold_of(bench.assignments, name) for name in "abcdef"}
    assert any(held.values())
    bench.model("rev-2").run(10)
    assert (bench.plan.version, active(bench)) == (1, True)
    assert {name: hold_of(bench.assignments, name) for name in "abcdef"} == held


def test_a_device_that_offers_less_memory_after_a_restart_gets_less() -> None:
    bench = serving()
    name = bench.plan.replicas[0].stages[0].device
    bench.join(name, session=2, memory_bytes=320_000).run(20)
    assert bench.num_plans_made == 2
    assert active(bench)


def test_losing_too_much_keeps_the_old_plan_and_says_what_is_missing() -> None:
    bench = serving()
    for name in "abcde":
        bench.leave(name)
    bench.run(5)
    assert bench.plan.version == 1
    assert "no plan: the model needs" in (bench.problem or "")
    for name in "abcde":
        bench.join(name, session=2)
    bench.run(5)
    assert bench.statuses[-1].problem is None


# --- failures -----------------------------------------------------------------------------


def test_a_device_that_cannot_load_is_named_and_left_out_for_a_while() -> None:
    bench = Bench().connect().model().join(*"abcdef")
    bench.obedient = False
    bench.run(4)
    bad = bench.plan.replicas[0].stages[0].device
    bench.fail(bad, "model.layers.3.mlp.up_proj.weight: checksum differs")
    bench.run(1)
    assert f"{bad} failed to load: model.layers.3.mlp.up_proj.weight" in (bench.problem or "")
    assert bad not in bench.devices()
    bench.obedient = True
    bench.run(3)
    assert active(bench)
    assert bench.problem is None
    # It gets another chance.
    bench.run(40)
    assert bad in bench.plan.reasons


def test_a_damaged_checkpoint_never_becomes_active_and_the_tensor_stays_named() -> None:
    bench = Bench().connect().model().join(*"abc")
    bench.obedient = False
    for _ in range(40):
        bench.run(2)
        for name, wanted in list(bench.assignments.items()):
            if wanted.hold or wanted.prepare:
                bench.fail(name, "tensor norm.weight is damaged")
    assert not any(plan.state is PlanState.ACTIVE for plan in bench.plans)
    assert "tensor norm.weight is damaged" in (bench.problem or "")


def test_an_old_failure_is_not_held_against_a_device() -> None:
    bench = serving()
    name = bench.plan.replicas[0].stages[0].device
    stale = fogs.loaded(0, [], 0, state=LoadState.FAILED, error="long ago")
    bench.handle(LoadedSeen(name, stale))
    assert bench.run(5).plan.version == 1


def test_a_device_that_hangs_while_loading_is_given_up() -> None:
    bench = Bench(load_seconds=20).connect().model().join(*"abcdef")
    bench.obedient = False
    bench.run(4)
    hung = bench.plan.replicas[0].stages[0].device
    for _ in range(12):
        bench.run(2)
        bench.load(*(name for name in bench.assignments if name != hung))
    assert hung not in bench.devices()
    assert active(bench)


def test_a_failed_move_goes_back_to_the_plan_that_serves() -> None:
    bench = serving(memory_bytes=2_600_000)
    old = bench.plan
    bench.obedient = False
    bench.slow_down("a", 0.1).run(6)
    assert not active(bench)
    coming = next(name for name, a in sorted(bench.assignments.items()) if a.prepare)
    for name in "abcdef":
        if name != coming:
            bench.leave(name)
    bench.fail(coming)
    bench.run(1)
    assert bench.plan.version == old.version
    assert active(bench)


# --- authority ----------------------------------------------------------------------------


def test_a_restarted_planner_keeps_the_plan_and_publishes_no_new_version() -> None:
    first = serving().slow_down("a", 0.25).run(20)
    second = Bench(session=200).connect()
    first.retained_for(second)
    second.telemetry = dict(first.telemetry)
    second.run(30)
    assert second.plans == [first.plan]
    assert second.problem is None
    # It acts on the next change as the first would have done.
    second.leave(min(first.devices())).run(2)
    assert second.plan.version == first.plan.version + 1


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_restarted_planner_keeps_the_plan_also_when_it_hears_the_store_before_the_bus(
    ahead: int,
) -> None:
    first = serving()
    second = Bench(session=200)
    second.last_version = first.plan.version + ahead
    second.look()
    second.connect()
    first.retained_for(second)
    second.run(30)
    assert second.plans == [first.plan]
    # What comes next is above all that was ever made.
    second.leave(min(first.devices())).run(2)
    assert second.plans[1].version == first.plan.version + ahead + 1


def test_a_restarted_planner_goes_on_with_a_plan_that_was_being_prepared() -> None:
    first = Bench().connect().model().join(*"abcdef")
    first.obedient = False
    first.run(5)
    second = Bench(session=200).connect()
    first.retained_for(second)
    second.assignments = dict(first.assignments)
    second.obedient = False
    second.run(4)
    second.load(*second.assignments)
    second.run(1)
    assert [(p.version, p.state) for p in second.plans] == [
        (1, PlanState.PREPARING),
        (1, PlanState.ACTIVE),
    ]


def test_a_restarted_planner_replaces_a_plan_that_lost_a_device_meanwhile() -> None:
    first = serving()
    second = Bench(session=200).connect()
    first.retained_for(second)
    gone = min(first.devices())
    second.leave(gone).run(5)
    assert second.plan.version > 1
    assert gone not in second.devices()


def test_the_version_is_above_all_that_bus_and_store_know() -> None:
    bench = Bench()
    bench.last_version = 41
    bench.connect().model().join(*"abcdef").run(5)
    assert bench.plan.version == 42


def test_an_older_plan_never_replaces_knowledge() -> None:
    bench = serving().slow_down("a", 0.25).run(30)
    newest = bench.plan
    assert newest.version > 1
    bench.handle(PlanSeen(bench.plans[0]))
    bench.handle(StatusSeen("a", fogs.status(0, DeviceState.LOST)))
    bench.run(5)
    assert bench.plan == newest
    assert bench.control.rollout.active == newest


def test_a_planner_without_its_lease_publishes_nothing_and_takes_over_knowingly() -> None:
    leader, standby = serving(), Bench(session=200).connect()
    standby.lease = False
    leader.retained_for(standby)
    standby.leave("a").run(10)
    assert standby.plans == []
    assert standby.statuses == []
    assert standby.assignments == {}
    standby.lease = True
    standby.run(3)
    assert standby.plan.version == leader.plan.version + 1


def test_a_lease_that_was_not_renewed_in_time_is_lost() -> None:
    bench = serving()
    bench.look()
    published = bench.published
    bench.leave(bench.plan.replicas[0].stages[0].device)
    bench.now += 10
    bench.tick()
    assert bench.published == published
    bench.look()
    bench.tick()
    assert bench.plan.version == 2


def test_nothing_is_published_between_a_search_and_the_next_look() -> None:
    bench = serving()
    bench.leave(bench.plan.replicas[0].stages[0].device)
    assert bench.control.tick(bench.now) == []
    assert bench.control.tick(bench.now) == []
    bench.handle(StoreSeen(False))
    assert bench.control.tick(bench.now) == []
    assert bench.decisions[-1] == "the draft of plan 2 is dropped: another planner has the lease"
    assert bench.control.rollout.version == 1


def test_a_plan_whose_device_leaves_while_it_is_searched_for_is_not_published() -> None:
    bench = serving()
    first, second = (replica.stages[0].device for replica in bench.plan.replicas[:2])
    bench.leave(first)
    assert bench.control.tick(bench.now) == []
    bench.leave(second)
    bench.look()
    bench.tick()
    assert bench.plan.version == 2
    assert not bench.devices() & {first, second}
    dropped = "the draft of plan 2 is dropped: the fog changed while it was searched for"
    assert dropped in bench.decisions


def test_a_plan_of_another_planner_makes_what_was_searched_for_too_late() -> None:
    bench = serving()
    gone = bench.plan.replicas[0].stages[0].device
    other = Bench(session=50).connect()
    bench.retained_for(other)
    other.leave(gone).run(30)
    bench.leave(gone)
    assert bench.control.tick(bench.now) == []
    bench.handle(PlanSeen(other.plan))
    bench.run(4)
    assert bench.control.rollout.active == other.plan
    assert bench.plan.version == 1


def test_nothing_is_published_while_the_bus_is_down() -> None:
    bench = serving()
    bench.handle(BusDown())
    published = bench.published
    bench.leave(bench.plan.replicas[0].stages[0].device).run(5)
    assert bench.published == published
    bench.handle(BusUp())
    assert bench.run(5).num_plans_made == 2


def test_without_a_store_the_planner_goes_on_and_says_so() -> None:
    bench = Bench().connect().model().join(*"abcdef")
    bench.lease = None
    bench.run(5)
    assert active(bench)
    assert not bench.statuses[-1].redis


def test_without_a_store_the_later_planner_waits_until_the_first_is_silent() -> None:
    bench = Bench(session=200, lease_seconds=10).connect().model().join(*"abcdef")
    bench.lease = None
    other = PlannerStatus(state=DeviceState.READY, session=100, redis=False)
    for _ in range(5):
        bench.handle(PlannerSeen(other))
        bench.run(4)
    assert bench.published == 0
    bench.run(12)
    assert active(bench)


def test_the_first_of_two_planners_without_a_store_is_not_impressed() -> None:
    bench = Bench(session=100).connect().model().join(*"abcdef")
    bench.lease = None
    bench.handle(PlannerSeen(PlannerStatus(state=DeviceState.READY, session=200, redis=False)))
    assert active(bench.run(5))


def test_a_late_will_is_answered_with_the_status_again() -> None:
    bench = serving()
    count = len(bench.statuses)
    bench.handle(PlannerSeen(PlannerStatus(state=DeviceState.LOST, session=50)))
    bench.run(1)
    assert len(bench.statuses) == count + 1
    assert bench.statuses[-1].state is DeviceState.READY


def test_after_a_reconnect_all_retained_state_is_published_again() -> None:
    bench = serving()
    assignments, plan = dict(bench.assignments), bench.plan
    bench.assignments.clear()
    bench.plans.clear()
    bench.handle(BusUp())
    bench.run(1)
    assert bench.assignments == assignments
    assert bench.plans == [plan]


@pytest.mark.parametrize("cleared", [PlanSeen(None), AssignmentSeen("a", None)])
def test_what_is_cleared_by_hand_is_published_again(cleared: Event) -> None:
    bench = serving()
    assignments, plan = dict(bench.assignments), bench.plan
    bench.assignments.clear()
    bench.plans.clear()
    bench.handle(cleared)
    bench.run(1)
    assert bench.assignments == assignments
    assert bench.plans == [plan]


def test_nothing_is_published_before_the_store_was_asked() -> None:
    bench = Bench().connect().model().join(*"abcdef")
    bench.now += 10
    assert bench.control.tick(bench.now) == []
    bench.handle(StoreSeen(True))
    bench.tick()
    assert bench.published > 0


def fogs_telemetry(ratio: float) -> Telemetry:

    return Telemetry(speed_ratio=ratio)

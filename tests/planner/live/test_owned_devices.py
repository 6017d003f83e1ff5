"""What owners ask of their devices, in a running fog."""

from __future__ import annotations

from typing import Any

import pytest

from broker.control import DeviceControl, OwnerRules, Placement
from planner.live.events import ControlSeen
from tests.planner.live.harness import Bench, active


def serving(**owners: OwnerRules) -> Bench:
    bench = Bench().connect().model()
    for name in "abcdef":
        bench.join(name, owner=owners.get(name, OwnerRules()))
    bench.run(8)
    assert active(bench)
    return bench


def place(bench: Bench, device: str, placement: Placement, **rules: Any) -> None:
    asked = OwnerRules(**rules) if rules else None
    control = DeviceControl(placement=placement, rules=asked, at=bench.now)
    bench.handle(ControlSeen(device, control))


def reason_of(bench: Bench, device: str) -> str:
    return next(entry.reason for entry in bench.plan.idle if entry.device == device)


def test_a_drained_device_serves_until_others_can_and_then_holds_nothing() -> None:
    bench = serving()
    before = {replica.id for replica in bench.plan.replicas}
    bench.obedient = False
    place(bench, "a", Placement.DRAINING)
    bench.run(3)
    assert not active(bench)
    assert {stage.replica for stage in bench.assignments["a"].hold} & before
    bench.obedient = True
    bench.run(15)
    assert active(bench)
    assert bench.assignments["a"].hold == bench.assignments["a"].prepare == []
    assert reason_of(bench, "a") == "its owner drains it"
    assert "a left (its owner drains it)" in bench.plan.trigger
    (decision,) = [each for each in bench.history.decisions if each.version == bench.plan.version]
    assert decision.reason == "the running plan cannot go on without a (its owner drains it)"


def test_a_device_that_is_drained_no_more_is_used_again() -> None:
    bench = serving()
    place(bench, "a", Placement.DRAINING)
    bench.run(15)
    place(bench, "a", Placement.OPEN)
    bench.run(15)
    assert "a" in bench.aim()


def test_a_device_that_was_removed_is_forgotten_whatever_it_said_last() -> None:
    bench = serving()
    place(bench, "a", Placement.REMOVED)
    bench.run(15)

    assert [topic.rpartition("/")[2] for topic in bench.cleared] == [
        "status", "profile", "loaded", "tensors", "assignment"
    ]  # fmt: skip
    assert all("/devices/a/" in topic for topic in bench.cleared)
    assert "a was removed" in [record.reason for record in bench.history.decisions]
    assert active(bench)
    assert "a" not in bench.control.knowledge.devices
    assert "a" not in {entry.device for entry in bench.plan.idle}


def test_a_device_that_was_removed_may_join_again() -> None:
    bench = serving()
    place(bench, "a", Placement.REMOVED)
    bench.run(15)
    bench.handle(ControlSeen("a", None))
    bench.join("a", session=2)
    bench.run(60)
    assert "a" in bench.control.knowledge.devices
    assert len(bench.cleared) == 5


def test_a_cordoned_device_keeps_what_it_has() -> None:
    bench = serving()
    held = bench.assignments["a"].hold
    place(bench, "a", Placement.CORDONED)
    bench.run(30)
    assert bench.num_plans_made == 1
    assert bench.assignments["a"].hold == held


def test_a_cordoned_device_without_stages_gets_none() -> None:
    bench = Bench().connect().model().join(*"bcdef").run(8)
    place(bench, "a", Placement.CORDONED)
    bench.join("a").run(20)
    assert bench.num_plans_made == 1
    bench.leave("b").run(10)
    assert bench.num_plans_made == 2
    assert "a" not in bench.aim()
    assert reason_of(bench, "a") == "its owner lets it have nothing new"


def test_a_plan_that_nobody_can_replace_without_a_cordoned_device_goes_on() -> None:
    bench = Bench().connect().model().join("a", "b", memory_bytes=1_000_000).run(8)
    before = {replica.id for replica in bench.plan.replicas}
    place(bench, "a", Placement.CORDONED)
    bench.slow_down("b", 0.25).run(20)
    assert {replica.id for replica in bench.plan.replicas} == before
    assert bench.num_plans_made == 2
    assert bench.plan.trigger.endswith("there is no plan without what devices may only keep")


def test_what_was_asked_later_counts() -> None:
    bench = serving()
    place(bench, "a", Placement.DRAINING)
    bench.handle(ControlSeen("a", DeviceControl(at=1.0)))
    bench.run(15)
    assert "a" not in bench.aim()
    bench.handle(ControlSeen("a", None))
    bench.run(15)
    assert "a" in bench.aim()


def test_quiet_hours_begin_and_end_by_the_clock_of_the_device() -> None:
    # The bench's clock begins at 22:30:00 UTC and some minutes; a is two hours ahead.
    quiet = OwnerRules(quiet_hours="01:00-01:30", utc_offset_seconds=7200)
    bench = serving(a=quiet)
    start = 1.7e9 + bench.now + 7200
    seconds_of_day = start % 86_400
    to_quiet = (3600 - seconds_of_day) % 86_400
    assert to_quiet < 7200
    assert "a" in bench.aim()
    bench.run(to_quiet + 20, step=2)
    assert "a" not in bench.aim()
    assert reason_of(bench, "a") == "its owner wants it left alone (01:00-01:30)"
    bench.run(1800, step=2)
    assert "a" in bench.aim()


ALL_DAY = OwnerRules(quiet_hours="00:00-23:59, 23:00-01:00")


def test_the_first_plan_does_not_wait_for_a_device_that_is_left_alone() -> None:
    bench = Bench(expect_devices=4).connect().model().join("a", owner=ALL_DAY).join(*"bcd")
    bench.run(8)
    assert active(bench)
    assert "a" not in bench.aim()


def test_a_fog_whose_devices_are_all_left_alone_says_so() -> None:
    bench = Bench(expect_devices=2).connect().model().join("a", "b", owner=ALL_DAY).run(8)
    assert bench.plans == []
    why = "its owner wants it left alone (00:00-23:59, 23:00-01:00)"
    assert bench.problem == f"no plan: no device can be used (a: {why}; b: {why})"

    for device in "ab":
        place(bench, device, Placement.OPEN, quiet_hours=None)

    assert active(bench.run(8))


@pytest.mark.parametrize("where", ["profile", "gateway"])
def test_a_device_that_must_not_see_text_has_neither_embedding_nor_head(where: str) -> None:
    if where == "profile":
        bench = serving(a=OwnerRules(text=False))
    else:
        bench = serving()
        place(bench, "a", Placement.OPEN, text=False)
        bench.run(20)
        assert "the owner of a allows no embedding or head now" in bench.plan.trigger
    stages = [stage for replica in bench.plan.replicas for stage in replica.stages]
    assert not any(stage.device == "a" and (stage.embedding or stage.head) for stage in stages)


def test_a_device_for_decode_only_is_in_no_prefill_replica() -> None:
    bench = serving(a=OwnerRules(phases=["decode"]))
    roles = [r.role for r in bench.plan.replicas if any(s.device == "a" for s in r.stages)]
    assert set(roles) <= {"decode"}


def test_a_share_is_named_in_the_reasons() -> None:
    bench = serving(a=OwnerRules(share=0.4))
    assert "its owner allows 40% of it" in bench.plan.reasons["a"]

"""From one plan to another where devices cannot hold both: one replica after the other."""

from __future__ import annotations

import random
from collections.abc import Sequence

from broker.placement import kv_reserved_tokens
from broker.plan import Plan, PlanState, Replica
from planner.live.assignments import stages_by_device
from planner.live.needs import Needs
from planner.live.rolling import way
from tests.planner import fogs
from tests.planner.live.harness import Bench, active

LAYERS = 4
MODEL = fogs.model(LAYERS)
CONTEXT = 256
TIGHT = MODEL.stage_bytes(0, 3, kv_reserved_tokens(CONTEXT))
"""Room for three layers and an end: never for two halves of the model that differ."""


def replica(name: str, devices: str, cut: int = 2) -> Replica:
    """One replica on two devices, cut behind ``cut`` layers."""
    return fogs.replica(name, [(devices[0], 0, cut), (devices[1], cut, LAYERS)])


def plan(*replicas: Replica) -> Plan:
    reasons = {stage.device: "its place" for r in replicas for stage in r.stages}
    return fogs.plan_of(*replicas, reasons=reasons, trigger="a change")


def names(plans: Sequence[Plan]) -> list[str]:
    return [" ".join(sorted(replica.id for replica in plan.replicas)) for plan in plans]


def tight(devices: str) -> dict[str, int]:
    return dict.fromkeys(devices, TIGHT)


OLD = plan(replica("old-1", "ab"), replica("old-2", "cd"))
NEW = plan(replica("new-1", "ba"), replica("new-2", "dc"))


def test_where_memory_holds_both_there_is_one_step() -> None:
    roomy = dict.fromkeys("abcd", 10 * TIGHT)
    assert way(OLD, NEW, roomy, [MODEL], "abcd") == [NEW]


def test_replicas_change_one_after_the_other_and_one_always_serves() -> None:
    plans = way(OLD, NEW, tight("abcd"), [MODEL], "abcd")
    assert names(plans) == ["old-2", "new-1 old-2", "new-1", "new-1 new-2"]
    assert plans[-1] == NEW


def test_what_stands_in_nobody_s_way_stays_until_the_end() -> None:
    new = plan(replica("new-1", "ba"), replica("old-2", "cd"), replica("new-3", "ef"))
    plans = way(OLD, new, tight("abcdef"), [MODEL], "abcdef")
    # The new devices are loaded before anything is given up.
    assert names(plans) == ["new-3 old-1 old-2", "new-3 old-2", "new-1 new-3 old-2"]
    assert plans[-1] == new


def test_what_needs_nothing_given_up_comes_first_and_serves_meanwhile() -> None:
    only, new = plan(replica("old-1", "ab")), plan(replica("new-1", "ba"), replica("new-2", "cd"))
    plans = way(only, new, tight("abcd"), [MODEL], "abcd")
    assert names(plans) == ["new-2 old-1", "new-2", "new-1 new-2"]


def test_a_gap_remains_only_where_every_old_replica_is_in_the_way() -> None:
    only, new = plan(replica("old-1", "ab")), plan(replica("new-1", "ba"))
    assert way(only, new, tight("ab"), [MODEL], "ab") == [new]


def test_a_replica_that_lost_a_device_stands_in_nobody_s_way() -> None:
    assert way(OLD, plan(replica("new-1", "bc")), tight("abcd"), [MODEL], "bc") == [
        plan(replica("new-1", "bc"))
    ]


def test_devices_without_a_stage_on_the_way_have_no_reason_there() -> None:
    first, *_ = way(OLD, NEW, tight("abcd"), [MODEL], "abcd")
    assert first.reasons == {"c": "its place", "d": "its place"}
    assert first.trigger == ("a change; one replica after the other, as memory does not hold both")


def some_pairs(prefix: str, devices: str, rng: random.Random) -> Plan:
    """One to three replicas of two devices each, cut anywhere."""
    order = "".join(rng.sample(devices, len(devices)))
    pairs = sorted(order[start : start + 2] for start in (0, 2, 4))[: rng.randint(1, 3)]
    return plan(*(replica(prefix + pair, pair, rng.randint(1, 3)) for pair in pairs))


def test_on_every_way_each_step_fits_and_somebody_serves_if_that_can_be() -> None:
    rng, devices = random.Random(5), "abcdefgh"
    num_ways = 0
    for _ in range(300):
        old, new = some_pairs("old-", devices, rng), some_pairs("new-", devices, rng)
        memory = {device: int(TIGHT * rng.uniform(1.0, 1.8)) for device in devices}
        plans = way(old, new, memory, [MODEL], devices)
        assert plans[-1] == new
        num_ways += len(plans) > 1
        before = {replica.id for replica in old.replicas}
        for step in plans[:-1]:
            here = {replica.id for replica in step.replicas}
            assert here
            # Nothing is given up and loaded at once, so that running requests can end.
            assert here < before or here > before
            for device, stages in stages_by_device(step.replicas).items():
                assert Needs.of([MODEL], [old, new]).fit(stages, memory[device])
            before = here
    assert num_ways > 50


# --- as the planner carries it out --------------------------------------------------------


def moving() -> Bench:
    """A fog in which nobody has room for another stage, and one device becomes slow."""
    bench = Bench().connect().model().join(*"abcdef").run(8)
    return bench.slow_down("a", 0.1)


def test_a_fog_without_room_for_both_plans_serves_in_every_step() -> None:
    bench = moving().run(60)
    steps = [plan for plan in bench.plans if plan.version > 1]
    assert len(steps) > 2
    assert bench.num_plans_made == 2
    serving = [step for step in steps if step.state is PlanState.ACTIVE]
    assert all(step.replicas for step in serving)
    assert "one replica after the other" in serving[0].trigger
    assert "one replica after the other" not in bench.plan.trigger
    assert not bench.control.rollout.is_changing
    # What was decided is the last of them.
    assert bench.history.decisions[-1].version == bench.plan.version


def test_running_requests_have_time_to_end_before_their_replica_goes() -> None:
    bench = moving()
    old = {r.id: {s.device for s in r.stages} for r in bench.plan.replicas}
    while bench.plan.version == 1:
        bench.run(0.5)
    assert active(bench)
    gone = old.keys() - {replica.id for replica in bench.plan.replicas}
    assert gone
    for name in gone:
        for device in old[name]:
            assert name in {stage.replica for stage in bench.assignments[device].hold}
    bench.run(1.5)
    changed = [a for a in bench.assignments.values() if a.frees_first]
    assert changed
    assert all(a.hold or a.prepare for a in changed)


def test_a_device_that_is_lost_on_the_way_leads_to_another_plan() -> None:
    bench = moving().run(6)
    assert bench.control.rollout.is_changing
    target = bench.control.rollout.current
    assert target is not None
    lost = min(bench.devices(target) - {"a"})
    bench.leave(lost).run(40)
    assert active(bench)
    assert lost not in bench.devices()
    assert not bench.control.rollout.is_changing


def test_a_planner_that_starts_on_the_way_goes_on() -> None:
    first = moving().run(6)
    assert first.control.rollout.is_changing
    second = Bench(session=200).connect()
    second.telemetry = dict(first.telemetry)
    first.retained_for(second)
    second.run(60)
    assert active(second)
    assert set(second.plan.reasons) == set("abcdef")
    assert "one replica after the other" not in second.plan.trigger

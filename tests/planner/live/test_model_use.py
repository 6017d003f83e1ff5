"""Which model is planned for, and the way from one to another; pure, with obedient devices."""

from __future__ import annotations

import random

import msgspec.structs

from broker.control import DeviceState, GatewayStatus, ModelTimes
from broker.identity import identity
from broker.plan import PlanState
from planner.live.assignments import stages_by_device
from planner.live.events import GatewaySeen, ModelSeen, ProfileSeen
from planner.live.needs import Needs
from planner.live.rolling import way
from tests.planner import fogs
from tests.planner.live.harness import Bench, active, hold_of

DEVICES = "abcd"
ROOMY = 20_000_000
MODEL, OTHER = fogs.model(4), fogs.model(4, revision="r2", name="m2")


def publish(bench: Bench, *, old: bool, new: bool) -> Bench:
    """Publish both models, the old one as ``demo``; what is not in use comes first."""
    manifests = {
        "demo": fogs.manifest("rev-1", name="demo", in_use=old),
        "new": fogs.manifest("rev-2", name="new", in_use=new),
    }
    for name, manifest in sorted(manifests.items(), key=lambda item: item[1].in_use):
        bench.handle(ModelSeen(name, manifest))
    return bench


def join(bench: Bench, memory_bytes: int) -> Bench:
    """Let devices join that have measured themselves for both."""
    for number, name in enumerate(DEVICES, start=1):
        profile = fogs.profile(0.001 * number, memory_bytes)
        other = fogs.profile(0.002 * number, memory_bytes, "rev-2")
        values = {each: getattr(other, each) for each in ModelTimes.__struct_fields__}
        bench.join(name)
        bench.handle(
            ProfileSeen(name, msgspec.structs.replace(profile, others=[ModelTimes(**values)]))
        )
    return bench


def serving(memory_bytes: int = ROOMY) -> Bench:
    bench = publish(Bench().connect(), old=True, new=False)
    return join(bench, memory_bytes).run(8)


def finishing(bench: Bench, *revisions: str) -> None:
    status = GatewayStatus(state=DeviceState.READY, session=1, finishing=list(revisions))
    bench.handle(GatewaySeen("gateway-1", status))


def test_a_model_that_is_published_and_not_in_use_changes_nothing() -> None:
    bench = serving()
    assert (bench.plan.revision, bench.plan.version, active(bench)) == ("rev-1", 1, True)
    bench.run(60)
    assert bench.plan.version == 1
    assert bench.problem is None


def test_where_no_model_is_in_use_what_serves_goes_on_and_the_status_says_it() -> None:
    bench = publish(serving(), old=False, new=False).run(20)
    assert (bench.plan.version, active(bench)) == (1, True)
    assert (
        bench.problem == "no model is in use; published: demo, new; use one: e2llm model use NAME"
    )


def test_the_new_model_is_loaded_beside_the_old_one_which_then_leaves() -> None:
    bench = serving()
    held = {name: hold_of(bench.assignments, name) for name in bench.devices()}
    finishing(bench, "rev-1")
    publish(bench, old=False, new=True).run(12)

    assert (bench.plan.revision, bench.plan.state) == ("rev-2", PlanState.ACTIVE)
    (old,) = bench.plan.others
    assert (old.revision, old.is_leaving) == ("rev-1", True)
    for name, replicas in held.items():
        told = bench.assignments[name].parts
        assert {
            s.replica for part in told for s in part.stages if part.revision == "rev-1"
        } == replicas

    finishing(bench)
    bench.run(12)
    assert bench.plan.others == []
    assert active(bench)
    for assignment in bench.assignments.values():
        assert {part.revision for part in assignment.parts if part.stages} <= {"rev-2"}
    assert not bench.control.rollout.is_changing


def test_a_model_whose_requests_do_not_end_is_given_up_after_a_while() -> None:
    bench = Bench(leave_seconds=30.0).connect()
    join(publish(bench, old=True, new=False), ROOMY).run(8)
    finishing(bench, "rev-1")
    publish(bench, old=False, new=True).run(20)
    assert bench.plan.others
    bench.run(40)
    assert not bench.plan.others


def test_a_new_model_that_does_not_fit_leaves_the_old_one_alone() -> None:
    bench = serving(1_100_000)
    assert active(bench)
    huge = msgspec.structs.replace(
        fogs.manifest("rev-3", name="huge"), config={**fogs.CONFIG, "num_hidden_layers": 80}
    )
    for name in DEVICES:
        view = bench.control.knowledge.devices[name]
        assert view.profile is not None
        times = [
            msgspec.structs.replace(each, model_revision="rev-3") for each in view.profile.others
        ]
        bench.handle(ProfileSeen(name, msgspec.structs.replace(view.profile, others=times)))
    publish(bench, old=False, new=False)
    bench.handle(ModelSeen("huge", huge))
    bench.run(30)
    assert (bench.plan.revision, bench.plan.version, active(bench)) == ("rev-1", 1, True)
    assert "no plan: the model needs" in (bench.problem or "")


def test_a_planner_that_starts_while_a_model_leaves_sees_it_off() -> None:
    first = serving()
    finishing(first, "rev-1")
    publish(first, old=False, new=True).run(12)
    assert first.plan.others
    second = Bench(session=200).connect()
    publish(second, old=False, new=True)
    finishing(second, "rev-1")
    first.retained_for(second)
    publish(second, old=False, new=True)

    second.run(20)
    assert second.control.rollout.is_changing
    finishing(second)
    second.run(20)
    assert (second.plan.revision, second.plan.others, active(second)) == ("rev-2", [], True)


def test_what_a_person_takes_back_is_dropped_and_the_old_model_never_stopped() -> None:
    bench = serving()
    bench.obedient = False
    publish(bench, old=False, new=True).run(6)
    assert not active(bench)
    publish(bench, old=True, new=False).run(3)
    bench.obedient = True
    bench.run(20)
    assert (bench.plan.revision, active(bench)) == ("rev-1", True)
    assert bench.plan.others == []
    assert not bench.control.rollout.is_changing


# --- the plans on the way -----------------------------------------------------------------


def test_without_room_for_both_requests_end_before_the_only_replica_goes() -> None:
    old = fogs.plan_of(fogs.replica("old", [("a", 0, 4)]))
    new = fogs.plan_of(fogs.replica("new", [("a", 0, 4)]), revision="r2", model="m2")
    plans = way(old, new, {"a": 6_000_000}, [MODEL, OTHER], "a")
    assert [plan.is_leaving for plan in plans] == [True, False]
    assert [plan.model for plan in plans] == ["m", "m2"]


def test_on_every_way_to_another_model_each_step_fits_and_the_old_one_leaves_last() -> None:
    rng = random.Random(3)
    num_steps = 0
    for _ in range(200):
        names = rng.sample("abcd", 4)
        old, new = (
            fogs.plan_of(
                *(
                    fogs.replica(f"{prefix}{i}", [(pair[0], 0, cut), (pair[1], cut, 4)])
                    for i, pair in enumerate((order[:2], order[2:])[: rng.randint(1, 2)])
                ),
                revision=revision,
                model=revision,
            )
            for prefix, revision, order in (
                ("old", "r", names),
                ("new", "r2", rng.sample(names, 4)),
            )
            for cut in (rng.randint(1, 3),)
        )
        memory = {name: rng.randint(5_000_000, 11_000_000) for name in names}
        plans = way(old, new, memory, [MODEL, OTHER], names)
        needs = Needs.of([MODEL, OTHER], [old, new])
        assert plans[-1] == new
        num_steps += len(plans) > 2
        for plan in plans[:-1]:
            olds = [part for part in plan.parts if identity(part) == identity(old)]
            news = [part for part in plan.parts if identity(part) == identity(new)]
            assert olds or news
            # As soon as the new model serves, or where nothing of it can, the old one leaves.
            assert not (olds and news) or olds[0].is_leaving
            for device, stages in stages_by_device(plan.all_replicas).items():
                assert needs.fit(stages, memory[device])
        with_old = [plan for plan in plans if plan.part_for(old) is not None]
        assert plans[: len(with_old)] == with_old
        last = with_old[-1].part_for(old)
        assert last is not None
        assert last.is_leaving
    assert num_steps > 20

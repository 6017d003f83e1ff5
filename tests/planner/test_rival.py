"""No plan is behind the best device alone, in requests per second or in answers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

import planner
from broker.plan import Role
from planner.catalogue import WeightFormat, load_devices, load_models
from planner.groupings.evolve import evolve
from planner.groupings.oracle import enumerate_groupings
from planner.groupings.search import rival_of
from planner.model import DeviceSpec, ModelSpec, Objective, Roles, Workload
from planner.performance import Member
from planner.planning import plan_outcome, reassess
from planner.replicas import Fog
from planner.rival import Part, Rival, Times
from planner.roles import Score, choose_roles
from tests.planner import fogs

WORK = Workload(prompt_tokens=200, answer_tokens=100, context_tokens=1024, min_tps=1.0)
QUICK = Objective(population=8, generations=2)


def unequal_fog(seed: int, num_devices: int = 4) -> tuple[list[DeviceSpec], ModelSpec]:
    """Return devices that each hold the model and differ in speed by up to a thousand times."""
    rng = random.Random(seed)
    model = fogs.model(4)
    whole = 2 * model.stage_bytes(0, 4, 2048)
    return [
        fogs.device(f"d{n}", 0.001 * 10 ** rng.uniform(0, 3), whole) for n in range(num_devices)
    ], model


def gpu_box_and_two_pis() -> tuple[list[DeviceSpec], ModelSpec]:
    shape, catalogue = load_models()["llama-3.1-8b"], load_devices().devices
    names = {"gpu-box": "rtx-3060-12gb", "pi-a": "raspberry-pi-4-4gb", "pi-b": "raspberry-pi-4-4gb"}
    devices = [
        catalogue[name].spec(device, shape, WeightFormat.INT4) for device, name in names.items()
    ]
    return devices, shape.spec(WeightFormat.INT4)


@pytest.mark.parametrize("seed", range(20))
def test_no_plan_is_behind_the_best_device(seed: int) -> None:
    devices, model = unequal_fog(seed)

    outcome = plan_outcome(devices, model, WORK, QUICK)

    rival = rival_of(Fog(devices, model, WORK, QUICK))
    assert rival is not None
    assert rival.load is not None
    assert not outcome.score.is_behind
    assert outcome.score.request_seconds <= rival.times.request * (1 + 1e-6)
    longer = outcome.score.latency_seconds / rival.latency
    assert longer <= 1 / (1 - rival.load)


@pytest.mark.parametrize("seed", range(20))
def test_without_a_load_no_plan_serves_less_than_the_best_device(seed: int) -> None:
    devices, model = unequal_fog(seed)
    free = replace(QUICK, rival_load=None)

    outcome = plan_outcome(devices, model, WORK, free)

    rival = rival_of(Fog(devices, model, WORK, free))
    assert rival is not None
    assert outcome.score.request_seconds <= rival.times.request * (1 + 1e-6)


def test_two_pis_do_not_prefill_for_a_gpu_box() -> None:
    devices, model = gpu_box_and_two_pis()
    chat = Workload(prompt_tokens=128, answer_tokens=128)
    free = planner.plan(devices, model, chat, replace(QUICK, rival_load=None))
    assert {s.device for r in free.replicas for s in r.stages} == {"gpu-box", "pi-a", "pi-b"}

    plan = planner.plan(devices, model, chat, QUICK)

    assert [s.device for r in plan.replicas for s in r.stages] == ["gpu-box"]
    for entry in plan.idle:
        assert "it would make answers later than gpu-box alone: a lone request" in entry.reason


def test_two_equal_devices_stand_beside_one_of_them() -> None:
    model = fogs.model(4)
    whole = 2 * model.stage_bytes(0, 4, 2048)
    devices = [fogs.device(name, 0.001, whole) for name in ("a", "b")]

    outcome = plan_outcome(devices, model, WORK, QUICK)

    assert not outcome.score.is_behind
    assert len(outcome.plan.replicas) == 2
    assert outcome.plan.idle == []


def times(request: float, *replicas: tuple[float, float], num_slow: int = 0) -> Times:
    """Return a plan of replicas that do both: seconds of a lone request, requests per second."""
    prefills = [Part(0.25 * seconds, rate) for seconds, rate in replicas]
    decodes = [Part(0.75 * seconds, rate) for seconds, rate in replicas]
    return Times(num_slow, request, request, prefills, decodes)


RIVAL = Rival("a", times(1.0, (10.0, 1.0)), 0.3)


def test_twice_the_requests_may_take_somewhat_longer_and_not_much_longer() -> None:
    assert not RIVAL.leaves_behind(times(0.5, (12.0, 2.0)))
    assert RIVAL.leaves_behind(times(0.5, (12.5, 2.0)))
    assert RIVAL.leaves_behind(times(0.999, (10.1, 1.001)))


def test_slow_replicas_do_no_harm_beside_one_as_fast_as_the_device() -> None:
    assert not RIVAL.leaves_behind(times(0.5, (10.0, 1.0), (19.0, 1.0)))
    assert RIVAL.leaves_behind(times(0.5, (10.0, 0.3), (19.0, 1.7)))


def test_the_slowest_replica_may_take_longer_the_more_requests_a_plan_serves() -> None:
    assert RIVAL.leaves_behind(times(0.8, (10.0, 1.0), (30.0, 0.25)))
    assert not RIVAL.leaves_behind(times(0.25, (10.0, 1.0), (30.0, 3.0)))
    assert RIVAL.leaves_behind(times(0.25, (10.0, 1.0), (41.0, 3.0)))


def test_a_device_too_slow_for_a_reader_leaves_no_plan_behind_that_is_fast_enough() -> None:
    rival = RIVAL._replace(times=times(1.0, (10.0, 1.0), num_slow=1))

    assert not rival.leaves_behind(times(1.0, (15.0, 1.0)))
    assert rival.leaves_behind(times(1.0, (15.0, 1.0), num_slow=1))
    assert rival.leaves_behind(times(1.1, (9.0, 0.9)))


def test_what_must_be_behind_is_behind() -> None:
    rng = random.Random(0)
    for _ in range(300):
        parts = [(rng.uniform(8, 30), rng.uniform(0.1, 2)) for _ in range(4)]
        plan = times(1 / sum(rate for _, rate in parts), *parts)

        assert RIVAL.leaves_behind(plan) or not RIVAL.must_leave_behind(plan)


@pytest.mark.parametrize("roles", list(Roles))
@pytest.mark.parametrize("seed", range(2))
def test_the_genetic_algorithm_finds_what_the_oracle_finds(seed: int, roles: Roles) -> None:
    devices, model = unequal_fog(seed, 5)
    fog = Fog(devices, model, WORK, Objective())

    found, exact = evolve(fog, roles, seed).score, enumerate_groupings(fog, roles).score

    assert found[:3] == exact[:3]
    assert found.objective_seconds == pytest.approx(exact.objective_seconds, rel=1e-9)


def test_many_devices_are_not_behind_either() -> None:
    devices, model = unequal_fog(3, 5)
    certified = plan_outcome(devices, model, WORK, QUICK)

    searched = plan_outcome(devices, model, WORK, replace(QUICK, exact_devices=3))

    assert not searched.score.is_behind
    assert searched.score.objective_seconds >= certified.score.objective_seconds


def test_a_running_plan_falls_behind_when_one_of_its_devices_becomes_slow() -> None:
    model = fogs.model(4)
    whole = 2 * model.stage_bytes(0, 4, 2048)
    devices = [fogs.device(name, 0.001, whole) for name in ("a", "b")]
    running = plan_outcome(devices, model, WORK, QUICK).plan
    slowed = [devices[0], fogs.device("b", 0.1, whole)]

    kept = reassess(running, slowed, model, WORK, QUICK)
    best = plan_outcome(slowed, model, WORK, QUICK, running=running)

    assert kept is not None
    assert not best.score.is_behind
    assert [s.device for r in best.plan.replicas for s in r.stages] == ["a"]
    assert kept.score.is_behind == 1


def test_without_a_device_that_holds_the_model_there_is_no_rival() -> None:
    devices, model = fogs.random_fog(1, 5, low=0.3, high=0.6)

    assert rival_of(Fog(devices, model, WORK, Objective())) is None
    plans = [
        planner.plan(devices, model, WORK, replace(QUICK, rival_load=load)) for load in (None, 0.3)
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("load", [-0.1, 1.0, float("nan")])
def test_a_load_that_is_no_share_is_refused(load: float) -> None:
    with pytest.raises(ValueError, match="rival_load"):
        Objective(rival_load=load)


def test_roles_are_mixed_rather_than_behind() -> None:
    devices, model = fogs.random_fog(2701, 2, 1, 0.9, 1.4)

    plan = planner.plan(devices, model, WORK, QUICK)

    assert Role.BOTH in {replica.role for replica in plan.replicas}


def test_of_many_replicas_the_slow_ones_are_left_out_and_the_plan_is_not_behind() -> None:
    model = fogs.model(4)
    whole = 2 * model.stage_bytes(0, 4, 2048)
    seconds = [0.01] * 12 + [10.0] * 2
    devices = [fogs.device(f"d{n:02}", each, whole) for n, each in enumerate(seconds)]
    fog = Fog(devices, model, WORK, replace(QUICK, exact_devices=2))
    groups = [options for d in range(14) if (options := fog.options(1 << d)) is not None]

    def chosen(rival: Rival | None) -> tuple[Score, tuple[Member, ...]]:
        return choose_roles(
            groups, WORK, Roles.SEPARATE, terms=fog.terms, max_enumerated=64, rival=rival
        )

    (free, with_all), (kept, without) = chosen(None), chosen(rival_of(fog))
    assert (len(with_all), len(without)) == (14, 12)
    assert not kept.is_behind
    assert kept.request_seconds <= 1.01 * free.request_seconds

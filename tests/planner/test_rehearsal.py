from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import planner
from broker.plan import Role
from planner import DeviceSpec, InfeasiblePlanError, Workload
from planner.candidates import ROUTINGS, total_delay
from planner.owner import Owner
from planner.simulation import SimRequest
from planner.simulation.routing import LEAST_ADDED
from planner.simulation.workloads import constant, fixed_period, lognormal, requests
from tests.planner.fogs import device, model

MODEL = model(num_layers=6)
WORK = Workload(prompt_tokens=100, answer_tokens=60, context_tokens=400, min_tps=7.0)


def fog(num_devices: int = 4) -> list[DeviceSpec]:
    rng = random.Random(7)
    size = MODEL.weight_bytes * 2
    return [device(f"d{n}", rng.uniform(0.001, 0.006), size) for n in range(num_devices)]


def sample(seed: int) -> tuple[SimRequest, ...]:
    rng = np.random.default_rng(seed)
    return requests(fixed_period(20, 0.1), constant(100), lognormal(60, 0.5), rng)


def test_a_rehearsed_plan_serves_the_samples_no_worse_than_the_live_one() -> None:
    found = planner.rehearse(fog(), MODEL, WORK, [sample(0), sample(1)])
    assert total_delay(found.served) <= total_delay(found.live)
    assert found.plan.replicas
    assert found.plan.optimality == "best by simulation on 2 samples"


def test_a_plan_is_rehearsed_for_the_gateways_routing_unless_others_are_allowed() -> None:
    samples = [sample(0), sample(1)]
    ours = planner.rehearse(fog(), MODEL, WORK, samples)
    anyhow = planner.rehearse(fog(), MODEL, WORK, samples, routings=None)
    assert ours.routing == LEAST_ADDED
    assert anyhow.routing in ROUTINGS.values()
    assert total_delay(anyhow.served) <= total_delay(ours.served)


def test_a_rehearsed_plan_gives_no_device_a_role_that_its_owner_does_not_allow() -> None:
    limited = [replace(d, owner=Owner(phases=frozenset({Role.DECODE}))) for d in fog()[1:]]
    found = planner.rehearse([fog()[0], *limited], MODEL, WORK, [sample(0)], routings=None)
    roles = {s.device: replica.role for replica in found.plan.replicas for s in replica.stages}
    assert {roles.get(d.id, Role.DECODE) for d in limited} == {Role.DECODE}


def test_rehearsing_is_repeatable() -> None:
    first = planner.rehearse(fog(), MODEL, WORK, [sample(0)])
    assert planner.rehearse(fog(), MODEL, WORK, [sample(0)]) == first


def test_a_model_that_no_group_holds_cannot_be_rehearsed() -> None:
    small = [device("d", 0.001, 1000)]
    with pytest.raises(InfeasiblePlanError):
        planner.rehearse(small, MODEL, WORK, [sample(0)])


def test_the_simulator_is_imported_only_when_a_rehearsal_is_asked_for() -> None:
    program = (
        "import sys, planner; before = 'planner.simulation' in sys.modules; planner.rehearse; "
        "print(before, 'planner.simulation' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.split() == ["False", "True"], found.stderr


def test_the_package_has_no_other_lazy_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'rehears'"):
        planner.__getattr__("rehears")

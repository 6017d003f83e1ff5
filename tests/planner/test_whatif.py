"""What a fog would do: plans, losses, and never less than its best device."""

import random

import pytest

from broker.control import Link
from planner.catalogue import WeightFormat, load_devices, load_models
from planner.model import DeviceSpec, InfeasiblePlanError, Objective, Workload
from planner.whatif.outcomes import Problem
from planner.whatif.places import explain, single_text

DEVICES, MODELS = load_devices().devices, load_models()


def random_place(seed: int) -> tuple[Problem, list[DeviceSpec]]:
    """Return two to five devices of the catalogue, some on a poor Wi-Fi, and a model."""
    rng = random.Random(seed)
    shape = MODELS[rng.choice(["llama-3.2-1b", "qwen3-4b", "llama-3.1-8b"])]
    names = sorted(DEVICES)
    wifi = Link(latency_seconds=0.02, bytes_per_second=2e6)
    devices = [
        DEVICES[rng.choice(names)].spec(
            f"d{index}",
            shape,
            WeightFormat.INT4,
            link=wifi if rng.random() < 0.3 else None,
            slowdown=rng.choice([1.0, 1.0, 3.0, 20.0]),
        )
        for index in range(rng.randint(2, 5))
    ]
    workload = Workload(
        prompt_tokens=rng.choice([32, 500, 1500]), answer_tokens=rng.choice([16, 200, 500])
    )
    objective = Objective(population=16, generations=5)
    return Problem(shape.spec(WeightFormat.INT4), workload, objective), devices


def test_no_plan_is_slower_than_its_best_device_and_all_say_so() -> None:
    alone = together = without_single = 0
    for seed in range(60):
        problem, devices = random_place(seed)
        try:
            plan = problem.plan(devices)
        except InfeasiblePlanError:
            continue
        text = single_text(problem, devices, plan)
        single = plan.best_single_device
        if single is None:
            assert text.startswith("No single device holds the whole model")
            without_single += 1
            continue
        rate, least = (p.requests_per_second for p in (plan.predicted, single.predicted))
        assert rate is not None
        assert least is not None
        assert rate >= least * (1 - 1e-9)
        if {s.device for replica in plan.replicas for s in replica.stages} == {single.device}:
            assert text.startswith(f"The plan is the best single device, {single.device}")
            # It would be found alone as well, and nothing that it leaves out helps it.
            others = [d for d in devices if d.id == single.device]
            assert problem.plan(others).predicted == plan.predicted
            alone += 1
        else:
            assert f"its best single device, {single.device}, serves" in text
            together += 1
    # Each of the cases occurs.
    assert min(alone, together) >= 5, (alone, together, without_single)

"""What a fog would do: plans, losses, and never less than its best device."""

from collections import Counter
from dataclasses import replace

import pytest

import planner
from broker.control import Link
from broker.plan import Role
from planner.catalogue import WeightFormat, load_devices, load_models
from planner.model import Objective, Workload
from planner.whatif.loads import choose_load, cut_to_context
from planner.whatif.outcomes import NOTICE_SECONDS, Problem, what_if
from planner.whatif.places import single_text
from planner.whatif.random_places import random_place

DEVICES, MODELS = load_devices().devices, load_models()


def test_no_plan_serves_less_than_its_best_device_and_what_is_said_is_true() -> None:
    cases: Counter[str] = Counter()
    for seed in range(20):
        problem, devices = random_place(seed)
        plan = problem.plan(devices)
        text = single_text(problem, devices, plan)
        single = plan.best_single_device
        if single is None:
            assert text.startswith("No single device holds the whole model")
            cases["none alone"] += 1
            continue
        rate, least = (p.requests_per_second for p in (plan.predicted, single.predicted))
        assert rate is not None
        assert least is not None
        assert rate >= least * (1 - 1e-9)
        if {stage.device for replica in plan.replicas for stage in replica.stages} == {
            single.device
        }:
            assert text.startswith(f"The plan is the best single device, {single.device}")
            assert rate == pytest.approx(least)
            cases["alone"] += 1
        else:
            assert f"its best single device, {single.device}, serves {least:.3g} alone" in text
            cases["together"] += 1
    assert min(cases[case] for case in ("none alone", "alone", "together")) > 0, cases


def test_what_is_simulated_is_the_plan_of_production() -> None:
    problem, devices = random_place(3)
    requests = choose_load("chat").requests(10, 0.01, 0)

    outcome = what_if(problem, devices, requests)

    assert outcome.plan == planner.plan(devices, problem.model, problem.workload, problem.objective)
    used = {stage.device for replica in outcome.plan.replicas for stage in replica.stages}
    assert set(outcome.busy) == used
    assert all(0 <= share <= 1 for share in outcome.busy.values())


def test_after_a_loss_the_new_plan_waits_for_the_device_that_fetches_longest() -> None:
    shape, weights = MODELS["llama-3.2-1b"], WeightFormat.INT8
    slow = Link(latency_seconds=0.001, bytes_per_second=1e6)
    devices = [
        DEVICES["rtx-3060-12gb"].spec("gpu", shape, weights),
        DEVICES["raspberry-pi-5-8gb"].spec("pi", shape, weights, link=slow, slowdown=100),
    ]
    problem = Problem(shape.spec(weights), Workload(), Objective(ttft_seconds=0.5))
    requests = choose_load("chat").requests(20, 0.5, 0)

    outcome = what_if(problem, devices, requests, [("gpu", 10.0)])

    (following,) = outcome.later
    # It held nothing while the other was there.
    assert {entry.device for entry in outcome.plan.idle} == {"pi"}
    assert following.missing == (Role.PREFILL, Role.DECODE), "the only replica was on the other"
    assert following.slowest == "pi"
    assert following.load_seconds == pytest.approx(problem.model.weight_bytes / 1e6, rel=0.01)
    assert following.active_from_seconds == 10.0 + NOTICE_SECONDS + following.load_seconds


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_planned_goodput_holds_without_queues_and_not_with_them(seed: int) -> None:
    problem, devices = random_place(seed)
    lone = problem.plan(devices).predicted
    assert lone.ttft_seconds is not None
    targets = replace(problem.objective, ttft_seconds=3 * lone.ttft_seconds)
    problem = replace(problem, objective=targets)
    plan = problem.plan(devices)
    rate, good = plan.predicted.requests_per_second, plan.predicted.good_requests_per_second
    assert rate is not None
    assert good is not None
    work = problem.workload
    load = choose_load("chat", work.prompt_tokens, work.answer_tokens)

    def within(share: float) -> float:
        requests, _ = cut_to_context(load.requests(60, share * rate, seed), work.context_tokens)
        found = what_if(problem, devices, requests, plan=plan).within_targets
        assert found is not None
        return found

    assert within(0.02) == pytest.approx(good / rate, abs=0.1)
    assert within(1.5) < good / rate - 0.1


def test_only_requests_that_finish_in_time_are_within_the_targets() -> None:
    problem, devices = random_place(3)
    requests = choose_load("chat").requests(10, 0.001, 0)

    def share(ttft_seconds: float | None, tpot_seconds: float | None) -> float | None:
        targets = Objective(ttft_seconds=ttft_seconds, tpot_seconds=tpot_seconds)
        return what_if(replace(problem, objective=targets), devices, requests).within_targets

    assert share(None, None) is None
    assert share(1e6, 1e6) == 1.0
    assert share(1e-9, None) == 0.0

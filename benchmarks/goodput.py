"""How near is the planned share of requests within targets to what queues leave of it?

    python benchmarks/goodput.py [--places 30]

Plans random places of catalogue devices (`planner.whatif.random_places`) for targets that are
multiples of an untargeted plan's lone request, and simulates 100 chat requests at shares of
what the plan serves. A plan predicts goodput without queues, so it should hold at little load
and bound what is left under more.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import NamedTuple

from benchmarks.here import commit
from planner.model import InfeasiblePlanError
from planner.whatif.loads import choose_load, cut_to_context, planned_workload
from planner.whatif.outcomes import what_if
from planner.whatif.random_places import random_place

NUM_REQUESTS = 100
TTFT_FACTORS = (1.5, 3.0)
TPOT_FACTOR = 2.0
LOADS = (0.1, 0.3, 0.5, 0.7, 0.9)
NEAR = 0.1


class Found(NamedTuple):
    """Shares of requests within both targets."""

    factor: float
    load: float
    predicted: float
    simulated: float


def measure(seed: int) -> Iterator[Found]:
    """Yield a place's shares, for each target and load; nothing where no plan serves."""
    problem, devices = random_place(seed)
    try:
        lone = problem.plan(devices).predicted
    except InfeasiblePlanError:
        return
    assert lone.ttft_seconds is not None
    assert lone.tpot_seconds is not None
    mean = problem.workload
    load = choose_load("chat", mean.prompt_tokens, mean.answer_tokens)
    workload = planned_workload(load, mean, problem.model)
    for factor in TTFT_FACTORS:
        objective = replace(
            problem.objective,
            ttft_seconds=factor * lone.ttft_seconds,
            tpot_seconds=TPOT_FACTOR * lone.tpot_seconds,
        )
        aimed = replace(problem, workload=workload, objective=objective)
        plan = aimed.plan(devices)
        rate, good = plan.predicted.requests_per_second, plan.predicted.good_requests_per_second
        assert rate is not None
        assert good is not None
        for share in LOADS:
            drawn = load.requests(NUM_REQUESTS, share * rate, seed)
            requests, _ = cut_to_context(drawn, workload.context_tokens)
            simulated = what_if(aimed, devices, requests, plan=plan).within_targets
            assert simulated is not None
            yield Found(factor, share, good / rate, simulated)


def main() -> None:
    """Print a Markdown report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--places", type=int, default=30)
    arguments = parser.parse_args()
    found = [entry for seed in range(arguments.places) for entry in measure(seed)]
    print(
        f"# Goodput, planned and simulated\n\n`python benchmarks/goodput.py`, commit {commit()}, "
        f"Python {platform.python_version()}, {platform.machine()}.\n\n"
        f"{len(found) // len(TTFT_FACTORS) // len(LOADS)} random places, {NUM_REQUESTS} chat "
        "requests each. Targets: TTFT as stated and TPOT "
        f"{TPOT_FACTOR:g} times a lone request's of the plan without targets.\n"
    )
    print(
        "| TTFT target | load | planned, median | simulated, median (lowest) | within 10 points |"
    )
    print("| --- | --- | --- | --- | --- |")
    for factor in TTFT_FACTORS:
        for load in LOADS:
            here = [entry for entry in found if (entry.factor, entry.load) == (factor, load)]
            shares = [entry.simulated for entry in here]
            near = sum(abs(entry.simulated - entry.predicted) <= NEAR for entry in here)
            print(
                f"| {factor:g} times | {load:.0%} | {median(e.predicted for e in here):.0%} "
                f"| {median(shares):.0%} ({min(shares):.0%}) | {near} of {len(here)} |"
            )


if __name__ == "__main__":
    main()

"""Is a fog ever slower than its best device? In throughput, and at less than full load.

    python benchmarks/best_device.py [--places 60] [--load 0.7]

Plans random places of two to four catalogue devices (`planner.whatif.random_places`), counts
those whose plan serves fewer requests per second than the best single device (there must be
none), and simulates 60 requests at a share of what that device serves alone: with the fog,
and with the device by itself. Prints how much longer requests take with the fog, for plans
without a target and with one for the first token, a multiple of the device's own.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from benchmarks.here import commit
from planner.model import InfeasiblePlanError
from planner.simulation import SimRequest
from planner.whatif.loads import choose_load, cut_to_context
from planner.whatif.outcomes import Outcome, alone, what_if
from planner.whatif.random_places import random_place

NUM_REQUESTS = 60
TARGETS = (None, 4.0, 2.0)
"""Target for TTFT as a multiple of the best device's; None: no target."""


@dataclass(frozen=True)
class Place:
    """A place in numbers.

    Attributes:
        gain: Requests per second of the plan over those of its best device.
        longer: For each of `TARGETS`, end-to-end time with the fog over that of the device.
    """

    gain: float
    longer: tuple[float, ...]


def measure(seed: int, load: float) -> Place | None:
    """Return a place's figures; None where no device holds the model."""
    problem, devices = random_place(seed)
    try:
        plan = problem.plan(devices)
    except InfeasiblePlanError:
        return None
    single = plan.best_single_device
    if single is None:
        return None
    rate = single.predicted.requests_per_second
    ttft, most = single.predicted.ttft_seconds, plan.predicted.requests_per_second
    assert rate is not None
    assert ttft is not None
    assert most is not None
    requests = draw(seed, load * rate, problem.workload.context_tokens)
    by_itself = alone(problem, devices, plan, requests)
    if by_itself is None:
        return Place(most / rate, (1.0,) * len(TARGETS))
    longer = []
    for target in TARGETS:
        seconds = None if target is None else target * ttft
        aimed = replace(problem, objective=replace(problem.objective, ttft_seconds=seconds))
        longer.append(mean(what_if(aimed, devices, requests)) / mean(by_itself))
    return Place(most / rate, tuple(longer))


def draw(seed: int, rate: float, context_tokens: int) -> Sequence[SimRequest]:
    """Return chat requests with the place's mean lengths."""
    workload = random_place(seed)[0].workload
    load = choose_load("chat", workload.prompt_tokens, workload.answer_tokens)
    return cut_to_context(load.requests(NUM_REQUESTS, rate, seed), context_tokens)[0]


def mean(outcome: Outcome) -> float:
    return outcome.summary.end_to_end.mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--places", type=int, default=60)
    parser.add_argument("--load", type=float, default=0.7)
    options = parser.parse_args()
    began = time.process_time()
    measured = [measure(seed, options.load) for seed in range(options.places)]
    places = [place for place in measured if place is not None]
    print(f"commit {commit()}, {platform.machine()}, Python {platform.python_version()}, ", end="")
    print(f"{time.process_time() - began:.0f} s of CPU time")
    gains = [place.gain for place in places]
    print(f"{len(places)} of {options.places} places have a device that holds the model.")
    print(f"Plans below the best device's throughput: {sum(gain < 1 - 1e-9 for gain in gains)}; ")
    print(f"gain: median {median(gains):.2f}, most {max(gains):.2f}.")
    print(f"At {options.load:.0%} of what the best device serves alone:\n")
    print("| target for TTFT | over 5 % longer | median | longest |")
    print("| --- | --- | --- | --- |")
    for index, target in enumerate(TARGETS):
        ratios = [place.longer[index] for place in places]
        name = "none" if target is None else f"{target:g} x the device's"
        worse = sum(ratio > 1.05 for ratio in ratios)
        print(f"| {name} | {worse} of {len(ratios)} | {median(ratios):.2f} | {max(ratios):.1f} |")


if __name__ == "__main__":
    main()

"""Fit the error terms of the paper's replicas to its sixteen mean decode speeds.

    python benchmarks/paper_errors.py [--seeds 12] [--routers planned|measured]

Looks for the five numbers of ``planner/paper/errors.toml`` by pattern search in logarithms, from
each of `STARTS`: each number is tried a step up and down, steps are halved when nothing helps.
The loss is the mean square of log(simulated / published) over the sixteen mean decode speeds;
waiting times, printed or simulated, are not looked at. Seeded: it prints the same every time.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from math import exp, inf, log, sqrt

from planner.paper.errors import ErrorTerms
from planner.paper.published import PaperWorkload, PublishedResult, load_published
from planner.paper.waiting import ROUTING, Model, published_plan, simulate_cell
from planner.simulation.routing import Routing

NAMES = ("extended", "custom", "three_devices", "offload_majority", "light_load")
FIRST_STEP, LAST_STEP = 0.3, 0.01
STARTS = ((0.0,) * 5, (-0.2, -0.2, -1.0, -1.0, -0.3))
# No term may say that a replica runs faster than planned.
MOST = 0.0


def main() -> None:
    """Print the fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--routers", choices=("planned", "measured"), default="planned")
    arguments = parser.parse_args()
    fit = Fit(arguments.seeds, replace(ROUTING, knows_speeds=arguments.routers == "measured"))
    best = min((fit.search(start) for start in STARTS), key=fit.loss)
    print(f"# {arguments.seeds} seeds, {fit.num_cells} cells simulated")
    for name, value in zip(NAMES, best, strict=True):
        print(f"{name} = {exp(value):.3f}")
    print(f"root mean square error of log speed: {sqrt(fit.loss(best)):.3f}")


class Fit:
    """The search, and cells that it has simulated.

    Attributes:
        num_cells: How many cells were simulated.
    """

    def __init__(self, num_seeds: int, routing: Routing) -> None:
        self._routing = routing
        self._seeds = range(num_seeds)
        self._speeds: dict[tuple[object, ...], float] = {}
        self.num_cells = 0

    def search(self, start: tuple[float, ...]) -> tuple[float, ...]:
        """Return the logarithms of the five terms, the best that is reached from ``start``."""
        best = start
        least = self.loss(best)
        step = FIRST_STEP
        while step > LAST_STEP:
            is_better = False
            for index in range(len(NAMES)):
                for move in (-step, step):
                    moved = min(best[index] + move, MOST)
                    tried = (*best[:index], moved, *best[index + 1 :])
                    found = self.loss(tried) if moved != best[index] else inf
                    if found < least - 1e-9:
                        best, least, is_better = tried, found, True
                        break
            if not is_better:
                step /= 2
        return best

    def loss(self, logarithms: tuple[float, ...]) -> float:
        """Return the mean square error of the logarithms of the mean decode speeds."""
        extended, custom, three, offload, light = (exp(value) for value in logarithms)
        errors = ErrorTerms(
            {PaperWorkload.EXTENDED: extended, PaperWorkload.CUSTOM: custom}, three, offload, light
        )
        published = load_published().results
        return sum(
            log(self._speed(result, errors) / result.decode.mean) ** 2 for result in published
        ) / len(published)

    def _speed(self, published: PublishedResult, errors: ErrorTerms) -> float:
        replicas = published_plan(published.workload, published.policy).replicas
        # Nothing else of the terms matters to a cell.
        speeds = tuple(errors.speed(published.workload, replica) for replica in replicas)
        cell_of = published.workload, published.policy, published.period_seconds
        key = (*cell_of, speeds, errors.light_load)
        if key not in self._speeds:
            cell = simulate_cell(published, Model.WITH_ERROR, errors, self._seeds, self._routing)
            self._speeds[key] = cell.decode.mean
            self.num_cells += 1
        return self._speeds[key]


if __name__ == "__main__":
    main()

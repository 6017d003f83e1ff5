"""Fit the error terms of the paper's replicas to its sixteen printed decode speeds.

    python benchmarks/paper_errors.py [--seeds 12] [--targets mean|median|both] [--part fit|terms]
                                      [--routers planned|measured] [--memory FILE]

Looks for the five numbers of ``planner/paper/errors.toml`` by damped least squares (Levenberg and
Marquardt) in logarithms, from each of `STARTS`. A residual is log(simulated / published) of the
mean decode speed, or the median one, of one of the sixteen cells. Waiting times, printed or
simulated, are not looked at by the search; how many are near the printed ones is shown beside
the terms that it ends with. ``--part fit`` prints where each start ends, with the bound that no
replica is faster than planned and without; ``--part terms`` how well each number is determined:
the error with it moved by ten per cent, the others kept or fitted again, and the fit to other
seeds. Seeded: it prints the same every time. With ``--memory`` a run that was stopped goes on
where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import exp, inf, log, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.paper.errors import ErrorTerms
from planner.paper.published import PaperWorkload, Policy, PublishedResult, load_published
from planner.paper.report import table
from planner.paper.tables import NEAR_POINTS
from planner.paper.waiting import NEAR, ROUTING, Cell, Model, published_plan, simulate_cell
from planner.simulation.routing import Routing

NAMES = ("extended", "custom", "three_devices", "offload_majority", "light_load")
STARTS = (
    (1.0, 1.0, 1.0, 1.0, 1.0),
    (0.85, 0.85, 0.4, 0.35, 0.8),
    (0.7, 0.7, 0.7, 0.7, 0.5),
    (0.95, 0.95, 0.3, 1.0, 1.0),
)
TARGETS = {"mean": ("mean",), "median": ("p50",), "both": ("mean", "p50")}
"""What is fitted of each of the sixteen rows of decode speeds."""
AS_PLANNED = 0.0
"""Logarithm of a replica that is as fast as planned."""
COLUMNS = (" / ".join(NAMES), "error", "waits within 25 %", "reductions within 15 points")
MOVES = (0.9, 1.1)
# Of the finite differences; smaller ones measure single requests that change their replica.
DIFFERENCE = 0.05
MAX_ROUNDS = 12
LEAST_GAIN = 0.01

Vector = NDArray[np.float64]


def main() -> None:
    """Print the fit, or what is known of its terms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--routers", choices=("planned", "measured"), default="planned")
    parser.add_argument("--targets", choices=TARGETS, default="both")
    parser.add_argument("--part", choices=("fit", "terms"), default="fit")
    parser.add_argument("--memory", type=Path, help="file of what was simulated already")
    arguments = parser.parse_args()
    routing = replace(ROUTING, knows_speeds=arguments.routers == "measured")
    known = Memory(arguments.memory)
    print(
        f"{arguments.seeds} seeds; targets: {arguments.targets}; routers know {arguments.routers} "
        "speeds.\n",
        flush=True,
    )

    def speeds(number: int) -> Speeds:
        seeds = range(number * arguments.seeds, (number + 1) * arguments.seeds)
        return Speeds(seeds, routing, TARGETS[arguments.targets], known)

    if arguments.part == "fit":
        _print_starts(speeds(0))
    else:
        _print_terms(speeds)


def _print_starts(speeds: Speeds) -> None:
    rows = []
    fits = [fit(speeds, np.log(start), AS_PLANNED) for start in STARTS]
    for start, found in zip(STARTS, fits, strict=True):
        rows.append(("at most 1", _numbers(start), *_columns(speeds, found)))
    for most, bound in ((AS_PLANNED, "at most 1"), (inf, "none")):
        again = best_fit(speeds, fits, most)
        rows.append((bound, "the best of these", *_columns(speeds, again)))
    print(table(("bound", "start", *COLUMNS), rows))


def _print_terms(speeds_of: Callable[[int], Speeds]) -> None:
    speeds = speeds_of(0)
    starts = [fit(speeds, np.log(start), AS_PLANNED) for start in STARTS]
    best = best_fit(speeds, starts, AS_PLANNED)
    print(f"Fit: {best.error:.4f} with {_numbers(best.terms)}.\n", flush=True)
    rows = []
    for index, name in enumerate(NAMES):
        for factor in MOVES:
            moved = best.logarithms.copy()
            moved[index] += log(factor)
            again = fit(speeds, moved, AS_PLANNED, fixed=index)
            alone = f"{_error(speeds.residuals(moved)):.4f}"
            rows.append((name, f"{exp(moved[index]):.3f}", alone, *_columns(speeds, again)))
    print(table(("term", "moved to", "error, others kept", *COLUMNS), rows), flush=True)
    others = []
    for number in range(1, 4):
        other = speeds_of(number)
        others.append((number, *_columns(other, fit(other, best.logarithms, AS_PLANNED))))
    print("\n" + table(("other seeds", *COLUMNS), others))


def _columns(speeds: Speeds, found: Fit) -> tuple[str, ...]:
    """Return what `COLUMNS` names."""
    cells, reductions = speeds.num_near(found.logarithms)
    return _numbers(found.terms), f"{found.error:.4f}", f"{cells} of 16", f"{reductions} of 8"


def _numbers(terms: Sequence[float]) -> str:
    return " / ".join(f"{term:.3f}" for term in terms)


# --- the search ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a search ends.

    Attributes:
        logarithms: Of the terms, in the order of `NAMES`.
        error: Root mean square of the residuals.
    """

    logarithms: Vector
    error: float

    @property
    def terms(self) -> tuple[float, ...]:
        """The five numbers."""
        return tuple(exp(value) for value in self.logarithms)


def best_fit(speeds: Speeds, fits: Sequence[Fit], most: float) -> Fit:
    """Return what the best fit comes to when it is fitted again until that gains nothing."""
    best = min(fits, key=lambda one: one.error)
    while True:
        again = fit(speeds, best.logarithms, most)
        if again.error > best.error * (1 - LEAST_GAIN):
            return min(best, again, key=lambda one: one.error)
        best = again


def fit(speeds: Speeds, start: Vector, most: float, fixed: int | None = None) -> Fit:
    """Return the terms with the least squares that are reached from ``start``.

    Args:
        speeds: What is fitted.
        start: Logarithms.
        most: The largest logarithm; terms at it that would grow stay there.
        fixed: Index of a term that keeps the value it starts with.
    """
    at, damping = start.copy(), 1e-2
    residuals = speeds.residuals(at)
    for _ in range(MAX_ROUNDS):
        slopes = np.column_stack([_slope(speeds, at, residuals, i) for i in range(len(NAMES))])
        gradient = slopes.T @ residuals
        free = [i for i in range(len(NAMES)) if i != fixed and (at[i] < most or gradient[i] > 0)]
        before = residuals @ residuals
        for _ in range(4):
            matrix = slopes[:, free].T @ slopes[:, free]
            matrix += damping * np.diag(np.diag(matrix) + 1e-9)
            tried = at.copy()
            tried[free] -= np.linalg.solve(matrix, gradient[free])
            tried[free] = np.minimum(tried[free], most)
            found = speeds.residuals(tried)
            if found @ found < before:
                at, residuals, damping = tried, found, damping / 4
                break
            damping *= 5
        if residuals @ residuals > before * (1 - LEAST_GAIN):
            break
    return Fit(at, _error(residuals))


def _slope(speeds: Speeds, at: Vector, residuals: Vector, index: int) -> Vector:
    moved = at.copy()
    moved[index] -= DIFFERENCE
    return (residuals - speeds.residuals(moved)) / DIFFERENCE


def _error(residuals: Vector) -> float:
    return sqrt(float(residuals @ residuals) / len(residuals))


class Found(NamedTuple):
    """What a cell came to: decode speeds in tokens/s, waiting time in seconds."""

    mean: float
    p50: float
    waiting: float


class Memory:
    """What cells came to by what was simulated, kept in a file when there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Found] = {}
        if path is not None and path.exists():
            for line in path.read_text("utf-8").splitlines():
                key, *numbers = line.rsplit(" ", len(Found._fields))
                self._known[key] = Found(*map(float, numbers))

    def get(self, key: str, simulated: Callable[[], Cell]) -> Found:
        """Return what is known, or what is simulated now."""
        if key not in self._known:
            cell = simulated()
            found = Found(cell.decode.mean, cell.decode.p50, cell.waiting_seconds)
            self._known[key] = found
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    print(key, *found, file=file)
        return self._known[key]


class Speeds:
    """Simulated cells beside the published ones."""

    def __init__(
        self, seeds: range, routing: Routing, targets: Sequence[str], known: Memory
    ) -> None:
        self._seeds = seeds
        self._routing = routing
        self._targets = targets
        self._known = known

    def residuals(self, logarithms: Vector) -> Vector:
        """Return log(simulated / published) of the targets, cell by cell."""
        errors = _terms(logarithms)
        ratios = [
            getattr(self._cell(one, errors), target) / getattr(one.decode, target)
            for one in load_published().results
            for target in self._targets
        ]
        return np.array([log(ratio) for ratio in ratios])

    def num_near(self, logarithms: Vector) -> tuple[int, int]:
        """Return how many waiting times and reductions are near the printed ones."""
        published = load_published()
        waits = {one: self._cell(one, _terms(logarithms)).waiting for one in published.results}
        num_cells = sum(abs(wait / one.waiting.mean - 1) <= NEAR for one, wait in waits.items())
        num_reductions = 0
        for workload, period in product(PaperWorkload, published.periods_seconds):
            ours, theirs = (waits[published.result(workload, period, p)] for p in Policy)
            off = 1 - ours / theirs - published.waiting_reduction(workload, period)
            num_reductions += abs(off) <= NEAR_POINTS
        return num_cells, num_reductions

    def _cell(self, published: PublishedResult, errors: ErrorTerms) -> Found:
        def simulated() -> Cell:
            return simulate_cell(published, Model.WITH_ERROR, errors, self._seeds, self._routing)

        replicas = published_plan(published.workload, published.policy).replicas
        # Nothing else of the terms matters to a cell.
        speeds = [errors.speed(published.workload, replica) for replica in replicas]
        cell_of = f"{published.workload}/{published.policy}/{published.period_seconds}"
        routers = "measured" if self._routing.knows_speeds else "planned"
        key = f"{cell_of} {routers} {self._seeds} {speeds} {errors.light_load}"
        return self._known.get(key, simulated)


def _terms(logarithms: Vector) -> ErrorTerms:
    extended, custom, three, offload, light = (exp(value) for value in logarithms)
    speeds = {PaperWorkload.EXTENDED: extended, PaperWorkload.CUSTOM: custom}
    return ErrorTerms(speeds, three, offload, light)


if __name__ == "__main__":
    main()

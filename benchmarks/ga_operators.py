"""Which operators should the genetic algorithm have? The paper leaves them open.

    python benchmarks/ga_operators.py [--devices 7 16 32] [--fogs N] [--json FILE]

Changes one thing at a time about the default (`planner.groupings.evolve.Operators`, `Objective`)
and plans random fogs (`planner.baselines.random_fogs`, unequal devices) by the paper's objective
(`planner.paper.replicas.PaperFog`) and by ours, without the local search, until as many new
groupings were scored as every other variant may. The last rows are with the local search,
whose groupings count as well, and random search. Of each fog the best is the exact optimum up
to 7 devices, beyond it the best that any variant found. Prints a Markdown table: share of fogs
on which the best was found (relative 1e-9), median and worst gap in the objective, groupings
scored, devices of all groups that had to be evaluated (what a search costs on a new fog), and
CPU seconds per fog when the groups are known.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Final

from benchmarks.here import commit
from planner.baselines.random_fogs import random_fog
from planner.groupings.chromosomes import random_individual
from planner.groupings.evolve import CROSSOVERS, SELECTIONS, Operators, evolve
from planner.groupings.oracle import enumerate_groupings
from planner.groupings.search import Groupings
from planner.model import Objective, Roles
from planner.paper.replicas import PaperFog
from planner.performance import Options
from planner.replicas import Fog
from planner.roles import Score

ROOT = Path(__file__).parent.parent
# Of 7 devices about a tenth of all groupings; beyond, what a plan may take in time.
BUDGETS: Final = {7: 100, 16: 1500, 32: 1000}
FOGS: Final = {7: 20, 16: 6, 32: 2}
EXACT_DEVICES: Final = 7
# Enough to use the budget up; small fogs may not have as many groupings.
MAX_GENERATIONS: Final = 300
DEFAULT: Final = Operators()
OBJECTIVE: Final = Objective(exact_devices=EXACT_DEVICES, rival_load=None)


@dataclass(frozen=True)
class Variant:
    """One setting of everything that is open."""

    name: str
    operators: Operators = DEFAULT
    population: int = OBJECTIVE.population
    elites: int = OBJECTIVE.elites
    local_search: bool = False


def variants() -> list[Variant]:
    """Return the default, and what differs from it in one thing."""
    found = [Variant("the default")]
    found += [
        Variant(f"selection: {name}", replace(DEFAULT, selection=name))
        for name in SELECTIONS
        if name != DEFAULT.selection
    ]
    found += [
        Variant(f"crossover: {name}", replace(DEFAULT, crossover=name))
        for name in CROSSOVERS
        if name != DEFAULT.crossover
    ]
    found += [Variant(f"elites: {n}", elites=n) for n in (2, 4, 8, 16) if n != OBJECTIVE.elites]
    found += [
        Variant(f"population: {n}", population=n)
        for n in (16, 32, 64, 128)
        if n != OBJECTIVE.population
    ]
    found.append(Variant("no cheap beginnings", replace(DEFAULT, constructs=False)))
    found.append(Variant("with the local search", local_search=True))
    found.append(
        Variant(
            "with the local search, no cheap beginnings",
            replace(DEFAULT, constructs=False),
            local_search=True,
        )
    )
    return found


class CountedTable:
    """A table that remembers who was asked for; what it evaluated stays with the first one."""

    def __init__(self, table: Fog | PaperFog, objective: Objective) -> None:
        self._table = table
        self.objective = objective
        self.workload = table.workload
        self.num_devices = table.num_devices
        self.costs = table.costs
        self.terms = table.terms
        self._asked: set[int] = set()

    def options(self, group: int) -> Options | None:
        self._asked.add(group)
        return self._table.options(group)

    @property
    def num_evaluated(self) -> int:
        return sum(group.bit_count() for group in self._asked)


@dataclass(frozen=True)
class Run:
    """What a variant found on one fog, and what it took."""

    num_slow: int
    seconds: float
    num_groupings: int
    num_evaluated: int
    cpu_seconds: float

    @property
    def value(self) -> tuple[int, float]:
        return self.num_slow, self.seconds


def evolved(table: Fog | PaperFog, variant: Variant, budget: int) -> Run:
    """Run a variant; the local search, where there is one, follows half of the budget."""
    counted = CountedTable(
        table,
        replace(
            OBJECTIVE,
            population=variant.population,
            elites=variant.elites,
            generations=MAX_GENERATIONS,
            local_search=variant.local_search,
        ),
    )
    groupings = Groupings(counted, Roles.SEPARATE)
    limit = budget // 2 if variant.local_search else budget
    begun = time.process_time()
    found = evolve(
        counted, Roles.SEPARATE, 0, groupings, operators=variant.operators, max_groupings=limit
    )
    return run_of(found.score, groupings, counted, time.process_time() - begun)


def drawn(table: Fog | PaperFog, budget: int) -> Run:
    """Return the best of random groupings."""
    rng = random.Random(0)
    counted = CountedTable(table, OBJECTIVE)
    groupings = Groupings(counted, Roles.SEPARATE)
    begun = time.process_time()
    scores = [
        groupings.solution(random_individual(table.num_devices, rng).groups()).score
        for _ in range(budget)
    ]
    return run_of(min(scores), groupings, counted, time.process_time() - begun)


def run_of(score: Score, groupings: Groupings, table: CountedTable, seconds: float) -> Run:
    return Run(
        score.num_slow, score.objective_seconds, len(groupings), table.num_evaluated, seconds
    )


def table_of(kind: str, seed: int, num_devices: int) -> Fog | PaperFog:
    fog = random_fog(seed, num_devices)
    if kind == "ours":
        return Fog(fog.devices, fog.model, fog.workload, OBJECTIVE)
    return PaperFog(fog.devices, fog.model, fog.workload, objective=OBJECTIVE)


def runs_on(kind: str, seed: int, num_devices: int) -> tuple[dict[str, Run], tuple[int, float]]:
    """Return each variant's run, and the best there is."""
    table, budget = table_of(kind, seed, num_devices), BUDGETS[num_devices]
    # The first run evaluates groups that the others find known; it goes again.
    evolved(table, Variant("first"), budget)
    found = {variant.name: evolved(table, variant, budget) for variant in variants()}
    found["random search"] = drawn(table, budget)
    best = [run.value for run in found.values()]
    if num_devices <= EXACT_DEVICES:
        exact = enumerate_groupings(table, Roles.SEPARATE).score
        best.append((exact.num_slow, exact.objective_seconds))
    return found, min(best)


def percent(gap: float) -> str:
    return "too slow" if gap == inf else f"{gap:.2%}"


def row(name: str, runs: Sequence[Run], best: Sequence[tuple[int, float]]) -> str:
    """Return a line; with more replicas under ``min_tps`` than the best has, it is too slow."""
    gaps = [
        run.seconds / seconds - 1 if run.num_slow == num_slow else inf
        for run, (num_slow, seconds) in zip(runs, best, strict=True)
    ]
    hits = sum(gap <= 1e-9 for gap in gaps) / len(gaps)
    return (
        f"| {name} | {hits:.0%} | {percent(statistics.median(gaps))} | {percent(max(gaps))} "
        f"| {statistics.fmean(run.num_groupings for run in runs):.0f} "
        f"| {statistics.fmean(run.num_evaluated for run in runs):.0f} "
        f"| {statistics.fmean(run.cpu_seconds for run in runs):.2f} |"
    )


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, nargs="+", default=list(BUDGETS), choices=BUDGETS)
    parser.add_argument("--objectives", nargs="+", default=["paper", "ours"])
    parser.add_argument("--fogs", type=int, help="fogs per size")
    parser.add_argument("--json", type=Path, help="write every run here as well")
    arguments = parser.parse_args()

    print(f"Commit {commit()}, Python {platform.python_version()}, {platform.machine()}.")
    records = []
    for num_devices in arguments.devices:
        for kind in arguments.objectives:
            seeds = range(arguments.fogs or FOGS[num_devices])
            all_runs = [runs_on(kind, seed, num_devices) for seed in seeds]
            best = [least for _, least in all_runs]
            print(f"\n{num_devices} devices, {kind} objective, {len(best)} fogs:\n")
            print(
                "| variant | best found | median gap | worst gap | groupings | evaluated | CPU s |"
            )
            print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
            for name in all_runs[0][0]:
                runs = [found[name] for found, _ in all_runs]
                print(row(name, runs, best), flush=True)
                records += [
                    {"devices": num_devices, "objective": kind, "variant": name, "best": least[1]}
                    | asdict(run)
                    for run, least in zip(runs, best, strict=True)
                ]
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

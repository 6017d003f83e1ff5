"""Does the genetic algorithm find the exact optimum of small fogs, and in what time?

    python benchmarks/ga_against_oracle.py [--fogs 200] [--devices 7] [--json FILE]

Plans random fogs (`planner.baselines.random_fogs`, unequal devices) by the paper's objective
(`planner.paper.replicas.PaperFog`) and by ours, and compares the genetic algorithm as it is by
default with exact enumeration of all groupings and roles on a table of its own. Equal means
equal in every value of the score that comes before latency, within 1e-9. CPU seconds are of
one core and include the evaluation of groups. Exits with 1 when fewer than 99 % are equal, a
gap is over 1 %, or a run takes 2 seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Final

from benchmarks.here import commit
from planner.baselines.random_fogs import random_fog
from planner.groupings.evolve import evolve
from planner.groupings.oracle import enumerate_groupings
from planner.model import Objective, Roles
from planner.paper.replicas import PaperFog
from planner.replicas import Fog
from planner.roles import WORST

ROOT = Path(__file__).parent.parent
LEAST_EQUAL: Final = 0.99
MOST_GAP: Final = 0.01
MOST_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Comparison:
    """One fog: the gap in seconds per request, and CPU seconds of both ways."""

    objective: str
    seed: int
    gap: float
    evolve_seconds: float
    oracle_seconds: float


def table_of(kind: str, seed: int, num_devices: int) -> Fog | PaperFog:
    fog = random_fog(seed, num_devices)
    if kind == "ours":
        return Fog(fog.devices, fog.model, fog.workload, Objective())
    return PaperFog(fog.devices, fog.model, fog.workload)


def compared(kind: str, seed: int, num_devices: int) -> Comparison | None:
    """Compare on one fog; None when no group of its devices holds the model."""
    begun = time.process_time()
    found = evolve(table_of(kind, seed, num_devices), Roles.SEPARATE, seed).score
    between = time.process_time()
    exact = enumerate_groupings(table_of(kind, seed, num_devices), Roles.SEPARATE).score
    ended = time.process_time()
    if exact == WORST:
        return None
    gap = found.objective_seconds / exact.objective_seconds - 1
    if (found.is_mixed, found.num_slow) != (exact.is_mixed, exact.num_slow):
        gap = inf
    return Comparison(kind, seed, gap, between - begun, ended - between)


def line(kind: str, runs: list[Comparison], num_skipped: int) -> tuple[str, bool]:
    """Return a row of the table, and whether it is as good as it should be."""
    gaps = [run.gap for run in runs]
    equal = sum(gap <= 1e-9 for gap in gaps)
    seconds = [run.evolve_seconds for run in runs]
    text = (
        f"| {kind} | {len(runs)} | {num_skipped} | {equal} ({equal / len(runs):.1%}) "
        f"| {max(gaps):.3%} | {statistics.median(seconds):.2f} | {max(seconds):.2f} "
        f"| {statistics.median(run.oracle_seconds for run in runs):.2f} |"
    )
    good = equal >= LEAST_EQUAL * len(runs) and max(gaps) <= MOST_GAP
    return text, good and max(seconds) < MOST_SECONDS


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fogs", type=int, default=200)
    parser.add_argument("--devices", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write every comparison here as well")
    arguments = parser.parse_args()

    print(f"Commit {commit()}, Python {platform.python_version()}, {platform.machine()}.")
    print(f"{arguments.fogs} random fogs of {arguments.devices} devices, seeds from 0 on.\n")
    print(
        "| objective | fogs | without a plan | equal to the optimum | worst gap "
        "| median CPU s | longest CPU s | median of the enumeration |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    records, is_good = [], True
    for kind in ("paper", "ours"):
        found = [compared(kind, seed, arguments.devices) for seed in range(arguments.fogs)]
        runs = [run for run in found if run is not None]
        text, good = line(kind, runs, len(found) - len(runs))
        print(text, flush=True)
        is_good &= good
        records += [asdict(run) for run in runs]
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    sys.exit(not is_good)


if __name__ == "__main__":
    main()

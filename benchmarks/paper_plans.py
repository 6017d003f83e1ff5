"""Do the plans that the E2LLM paper prints come out of our planner?

    python benchmarks/paper_plans.py [--seeds 20] [--profiles 40] [--part plans|evolution|profiles]

Plans the paper's seven devices and two workloads exactly (all groupings, all roles) and with
the genetic algorithm, under the calibrated profile, and prints our plans beside the published
ones as a Markdown report. Then every fitted number of the profile is changed at random, to see
how much of the agreement hangs on its exact value. ``docs/paper.md`` says what may be
concluded from it.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
import tomllib
from pathlib import Path

from benchmarks.here import commit
from planner.model import InfeasiblePlanError
from planner.paper import (
    PaperWorkload,
    Policy,
    Reading,
    best_plan,
    compare,
    compare_groups,
    evolved_plan,
    load_calibration,
)
from planner.paper.calibration import CALIBRATION_FILE, Calibration, parse_calibration
from planner.paper.plans import fog_under
from planner.paper.report import (
    CAVEAT,
    groups_table,
    plans_table,
    readings_table,
    replicas_table,
    table,
)

ROOT = Path(__file__).parent.parent
PARTS = ("plans", "evolution", "profiles")
SPREADS = (0.02, 0.05, 0.1)
PAIRS = [(workload, policy) for workload in PaperWorkload for policy in Policy]


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=20, help="runs of the genetic algorithm")
    parser.add_argument("--profiles", type=int, default=40, help="changed profiles per spread")
    parser.add_argument("--part", choices=PARTS, help="only this part")
    arguments = parser.parse_args()

    print(
        f"# The paper's plans\n\nCommit {commit()}, {platform.machine()}, {_python()}.\n\n{CAVEAT}"
    )
    if arguments.part in (None, "plans"):
        _print_plans()
    if arguments.part in (None, "evolution"):
        title = f"Genetic algorithm, {arguments.seeds} seeds"
        print(f"\n## {title}\n\n{_evolution(arguments.seeds)}", flush=True)
    if arguments.part in (None, "profiles"):
        title = f"{arguments.profiles} profiles with every fitted number changed at random"
        print(f"\n## {title}\n\n{_sensitivity(arguments.profiles)}")


def _print_plans() -> None:
    comparisons = [compare(workload, policy) for workload, policy in PAIRS]
    sources = [number.source for number in load_calibration().numbers]
    counts = ", ".join(f"{sources.count(s)} {s}" for s in sorted(set(sources)))
    readings = [best_plan(w, p, reading) for w, p in PAIRS for reading in Reading]
    sections = [
        f"\nNumbers of the calibration: {counts}.",
        f"## Decode groups\n\n{groups_table(compare_groups())}",
        f"## Plans\n\n{plans_table(comparisons)}",
        f"### Replicas of the optima\n\n{replicas_table(c.best for c in comparisons)}",
        f"## Readings of prefill speed\n\n{readings_table(readings)}",
    ]
    print("\n\n".join(sections), flush=True)


def _evolution(num_seeds: int) -> str:
    rows = []
    for workload, policy in PAIRS:
        best = best_plan(workload, policy).objective_seconds
        seconds, gaps = [], []
        for seed in range(num_seeds):
            began = time.process_time()
            found = evolved_plan(workload, policy, seed)
            seconds.append(time.process_time() - began)
            gaps.append(found.objective_seconds / best - 1)
        rows.append(
            (
                workload,
                policy,
                f"{sum(gap < 1e-9 for gap in gaps)} of {num_seeds}",
                f"{max(gaps):.2%}",
                f"{max(seconds):.2f}",
            )
        )
    header = ("workload", "policy", "equals the optimum", "largest gap", "slowest, CPU seconds")
    return table(header, rows)


def _sensitivity(num_profiles: int) -> str:
    """Return what is left of the agreement when the fitted numbers are changed at random."""
    rows = []
    for spread in SPREADS:
        groups: list[int] = []
        same: list[bool] = []
        gaps: list[float] = []
        num_impossible = 0
        for seed in range(num_profiles):
            calibration = _changed(random.Random(f"{spread}/{seed}"), spread)
            fogs = {workload: fog_under(calibration, workload) for workload in PaperWorkload}
            try:
                found = compare_groups(fogs)
                plans = [compare(w, Policy.E2LLM, fog=fog) for w, fog in fogs.items()]
            except InfeasiblePlanError:
                num_impossible += 1
                continue
            groups.append(sum(group.slots == group.published.slots for group in found))
            same += [plan.is_published for plan in plans]
            gaps += [
                plan.regrouped.objective_seconds / plan.best.objective_seconds - 1 for plan in plans
            ]
        rows.append(
            (
                f"±{spread:.0%}",
                num_impossible,
                f"{statistics.median(groups):.0f} ({min(groups)} to {max(groups)})",
                f"{sum(same) / len(same):.0%}",
                f"{statistics.median(gaps):.1%}",
                f"{sorted(gaps)[int(0.95 * len(gaps))]:.1%}",
            )
        )
    header = (
        "change",
        "a published group is impossible",
        "of 8 groups with the published slots, median (range)",
        "E2LLM optimum is the published plan",
        "published plan worse than the optimum, median",
        "P95",
    )
    return table(header, rows)


def _changed(rng: random.Random, spread: float) -> Calibration:
    document = tomllib.loads(CALIBRATION_FILE.read_text(encoding="utf-8"))
    for entry in [document["model"], document["network"], *document["devices"]]:
        for number in entry.values():
            if isinstance(number, dict) and number["source"] == "fitted":
                number["value"] *= 1 + rng.uniform(-spread, spread)
    return parse_calibration(document, "changed")


def _python() -> str:
    return f"Python {platform.python_version()}"


if __name__ == "__main__":
    main()

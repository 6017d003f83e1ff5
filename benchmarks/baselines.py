"""Our objective and routing against the paper's E2LLM and other systems, on equal terms.

    python benchmarks/baselines.py [--quick] [--only NAME] [--processes N]
        [--json FILE] [--figure FILE]
    python benchmarks/baselines.py --merge FILE FILE ... [--json FILE] [--figure FILE]

Simulates every system of ``planner.baselines`` on the paper's fog (calibrated profile, true
speeds as planned) and on three fogs of our own with the lengths of Azure's traces, and prints
a Markdown report. All systems have the same devices, builder of replicas, ``min_tps``, cap of
slots and chunks, and meet the same requests (paired seeds).

Ours is chosen for each cell by simulation: `planner.candidates.choose` runs the candidates,
among them all baselines' plans, on samples of the stated workload drawn with other seeds
(from 10000 on) than those reported (from 0 on), and minimises mean waiting plus mean
end-to-end time. Beside it: the same restricted to the routing of production's gateway, and
what the live planner and gateway do without any choosing.

A whole run takes about three quarters of an hour of one core, two thirds of it for 24 devices.
``--only`` runs a part of it, and ``--merge`` makes one report of parts that were written with
``--json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.here import commit
from planner.baselines import NOTES, System, baselines, candidates, live_systems
from planner.baselines.fogs import FOGS, TRAFFIC, fog_site
from planner.baselines.report import conditions, figure, table
from planner.baselines.sites import FogSite, PaperSite
from planner.baselines.systems import OURS, OURS_GATEWAY, OURS_UNHURRIED
from planner.candidates import (
    ROUTINGS,
    Candidate,
    Trials,
    choose,
    mean,
    unhurried_delay,
)
from planner.flow import request_seconds
from planner.paper.published import PaperWorkload, load_published
from planner.simulation import SimRequest
from planner.simulation.routing import LEAST_ADDED
from planner.simulation.workloads import fixed_period, lognormal, poisson, requests

ROOT = Path(__file__).parent.parent
SAMPLE_SEED = 10_000
LOADS = {"light": 0.4, "medium": 0.8, "heavy": 1.5}
"""Arrivals over what the fog's best plan serves, by the analytic objective with mixed roles."""
PROMPT_CV, ANSWER_CV = 0.2, 0.7
"""Spread of the paper's lengths, of which it prints the means only: assumed."""


@dataclass(frozen=True)
class Size:
    """How much is simulated."""

    num_seeds: int
    num_samples: int
    num_requests: int


FULL = Size(num_seeds=20, num_samples=20, num_requests=100)
QUICK = Size(num_seeds=3, num_samples=2, num_requests=60)


@dataclass(frozen=True)
class Cell:
    """One fog, workload and load; ``load`` is a period in seconds on the paper's fog."""

    fog: str
    workload: str
    load: str


def cells(quick: bool) -> list[Cell]:
    """Return what is compared; a quick run has a corner of each fog."""
    periods = ["0.5"] if quick else [str(p) for p in load_published().periods_seconds]
    found = [Cell("paper", str(w), period) for w in PaperWorkload for period in periods]
    for fog in FOGS if not quick else ["one-gpu-box"]:
        found += [Cell(fog, traffic, load) for traffic in TRAFFIC for load in LOADS]
    return found


@dataclass(frozen=True)
class Setting:
    """A fog with a workload, what the systems plan there, and our candidates."""

    site: PaperSite | FogSite
    systems: tuple[System, ...]
    candidates: list[Candidate]
    periods_seconds: dict[str, float]

    @property
    def least_request_seconds(self) -> float:
        """Of all candidates: where all groupings are enumerated, no plan of any roles has less."""
        work = self.site.table.workload
        return min(request_seconds(candidate.members, work) for candidate in self.candidates)


@cache
def setting(fog: str, workload: str) -> Setting:
    """Return a setting; the cells of one workload share it."""
    site: PaperSite | FogSite
    if fog == "paper":
        site = PaperSite(PaperWorkload(workload))
        systems = baselines(site) + live_systems(site)
        periods = {str(p): p for p in load_published().periods_seconds}
    else:
        site = fog_site(fog, workload)
        systems = baselines(site) + live_systems(site)
        work = site.table.workload
        seconds = min(request_seconds(system.candidate.members, work) for system in systems)
        periods = {name: seconds / load for name, load in LOADS.items()}
    return Setting(site, systems, candidates(site, systems, periods.values()), periods)


def draw(cell: Cell, period: float, seed: int, number: int) -> tuple[SimRequest, ...]:
    """Return the requests of one run: the paper's fixed period, or Poisson arrivals."""
    rng = np.random.default_rng(seed)
    if cell.fog == "paper":
        means = load_published().workloads[PaperWorkload(cell.workload)]
        prompt = lognormal(means.prompt_tokens, PROMPT_CV)
        answer = lognormal(means.answer_tokens, ANSWER_CV)
        return requests(fixed_period(number, period), prompt, answer, rng)
    traffic = TRAFFIC[cell.workload]
    arrivals = poisson(number, 1 / period, rng)
    return requests(arrivals, traffic.prompt.lengths(), traffic.answer.lengths(), rng)


def compare(cell: Cell, size: Size) -> dict[str, Any]:
    """Return what every system and ours come to in one cell."""
    began = time.process_time()
    here = setting(cell.fog, cell.workload)
    period = here.periods_seconds[cell.load]

    def drawn(first: int, count: int) -> list[tuple[SimRequest, ...]]:
        return [draw(cell, period, first + k, size.num_requests) for k in range(count)]

    trials = Trials(here.site, drawn(SAMPLE_SEED, size.num_samples))
    reported = Trials(here.site, drawn(0, size.num_seeds))
    rows = []
    for name, candidate in [
        (OURS, choose(trials, here.candidates)),
        (OURS_UNHURRIED, choose(trials, here.candidates, unhurried_delay)),
        (OURS_GATEWAY, choose(trials, here.candidates, routings=[LEAST_ADDED])),
        *((system.name, system.candidate) for system in here.systems),
    ]:
        runs = reported.runs(candidate)
        rows.append(
            {
                "system": name,
                **{name: round(value, 4) for name, value in asdict(mean(runs)).items()},
                "waiting_by_seed": [round(run.waiting_seconds, 3) for run in runs],
                "end_to_end_by_seed": [round(run.end_to_end_seconds, 3) for run in runs],
                "plan": described(here.site, candidate),
                "routing": routing_name(candidate),
                "origin": candidate.origin,
                "request_seconds": request_seconds(candidate.members, here.site.table.workload),
            }
        )
    return {
        **asdict(cell),
        "period_seconds": period,
        "least_request_seconds": here.least_request_seconds,
        "cpu_seconds": round(time.process_time() - began, 1),
        "systems": rows,
    }


def described(site: PaperSite | FogSite, candidate: Candidate) -> list[str]:
    """Return each replica in words."""
    return [
        f"{replica.role} {'+'.join(stage.device for stage in replica.stages)} ({replica.slots})"
        for replica in site.replicas(candidate.members)
    ]


def routing_name(candidate: Candidate) -> str:
    """Return the name of a candidate's routing."""
    names = [name for name, routing in ROUTINGS.items() if routing == candidate.routing]
    return names[0] if names else "splitwise"


def compare_all(wanted: Sequence[Cell], size: Size, processes: int) -> Iterator[dict[str, Any]]:
    """Yield the cells in order, with a bar on the terminal."""
    began = time.monotonic()
    with ProcessPoolExecutor(processes) as pool:
        # One process plans for all loads of a workload.
        found = (
            pool.map(compare, wanted, [size] * len(wanted), chunksize=len(LOADS))
            if processes > 1
            else (compare(cell, size) for cell in wanted)
        )
        for number, entry in enumerate(found, start=1):
            width = 30 * number // len(wanted)
            bar = "#" * width + "-" * (30 - width)
            seconds = time.monotonic() - began
            print(
                f"\r[{bar}] {number}/{len(wanted)} cells, {seconds:.0f} s",
                end="\n" if number == len(wanted) else "",
                file=sys.stderr,
                flush=True,
            )
            yield entry


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a corner of it, in some minutes")
    parser.add_argument("--only", help="cells that contain this as 'fog workload load'")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--merge", type=Path, nargs="+", help="report these parts, run nothing")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--figure", type=Path, help="draw waiting and end-to-end times here")
    arguments = parser.parse_args()

    if arguments.merge:
        parts = [json.loads(path.read_text()) for path in arguments.merge]
    else:
        size = QUICK if arguments.quick else FULL
        wanted = cells(arguments.quick)
        if arguments.only:
            wanted = [c for c in wanted if arguments.only in f"{c.fog} {c.workload} {c.load}"]
        if not wanted:
            parser.error(f"no cell has {arguments.only!r} in its name")
        began = time.monotonic()
        entries = list(compare_all(wanted, size, arguments.processes))
        command = "python benchmarks/baselines.py"
        command += " --quick" * arguments.quick
        command += f' --only "{arguments.only}"' if arguments.only else ""
        parts = [described_run(command, time.monotonic() - began, size, entries)]
    report = merged(parts)
    if arguments.json:
        # One cell a line: a change of one shows as one.
        head = json.dumps({name: value for name, value in report.items() if name != "cells"})
        lines = ",\n".join(json.dumps(entry) for entry in report["cells"])
        arguments.json.write_text(f'{head[:-1]},\n"cells": [\n{lines}\n]}}\n')
    if arguments.figure:
        figure(report["cells"], arguments.figure)
    print("# Baselines\n")
    for name, value in report.items():
        if name not in ("cells", "notes", "parts"):
            print(f"- {name.replace('_', ' ')}: {value}")
    commits = sorted({part["commit"] for part in report["parts"]})
    print(f"- commit: {', '.join(commits)}")
    seconds = sum(entry["cpu_seconds"] for entry in report["cells"])
    print(f"- CPU time: {seconds:.0f} s; {len(report['parts'])} runs, merged by `--merge`, such as")
    print(f"  `{report['parts'][0]['command']} --json PART`")
    print(f"\n{conditions(report['cells'])}\n\n{table(report['cells'])}")


def described_run(
    command: str, seconds: float, size: Size, entries: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the results of some cells and how they came about."""
    return {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "reported_seeds": [0, size.num_seeds - 1],
        "choosing_seeds": [SAMPLE_SEED, SAMPLE_SEED + size.num_samples - 1],
        "requests_per_run": size.num_requests,
        "parts": [{"command": command, "commit": commit(), "seconds": round(seconds)}],
        "notes": NOTES,
        "cells": entries,
    }


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one report of several, its cells in the usual order.

    Raises:
        SystemExit: They differ in seeds, requests or machine, or two have the same cell.
    """
    first = parts[0]
    for name in ("machine", "reported_seeds", "choosing_seeds", "requests_per_run"):
        if any(part[name] != first[name] for part in parts):
            raise SystemExit(f"the parts differ in {name}")
    order = [asdict(cell) for cell in cells(quick=False)]
    found = {}
    for entry in (entry for part in parts for entry in part["cells"]):
        place = order.index({name: entry[name] for name in ("fog", "workload", "load")})
        if place in found:
            raise SystemExit(f"two parts have {order[place]}")
        found[place] = entry
    return {
        **first,
        "parts": [piece for part in parts for piece in part["parts"]],
        "cells": [found[place] for place in sorted(found)],
    }


if __name__ == "__main__":
    main()

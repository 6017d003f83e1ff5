"""How long does a plan take for many devices and layers?

    python benchmarks/planner_scale.py [--devices 8 16 32 64 128 256 512] [--layers 32]
        [--fog mixed unequal] [--json FILE] [--figure FILE]

CPU seconds of `planner.plan` on one core for random fogs (`planner.baselines.random_fogs`):
devices of the catalogue's classes ("mixed": those of a class are equal, so that a group's
split is found once for all groups like it) and devices that are all different ("unequal").
Everything is included: evaluating groups, the genetic algorithm, the local search, the exact
enumeration up to 8 devices and the bound beyond.

With ``--json`` rows are added to those that the file has, so that a long run can be done in
pieces; the table and the figure are of all rows in the file.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.here import commit
from planner.baselines.random_fogs import random_fog
from planner.planning import plan_outcome

ROOT = Path(__file__).parent.parent
SIZES: Final = (8, 16, 32, 64, 128, 256, 512)
LIMITS: Final = {32: 10.0, 128: 60.0, 512: 300.0}
"""CPU seconds that a plan may take; the figure has them as crosses."""


@dataclass(frozen=True)
class Row:
    """One plan."""

    fog: str
    num_devices: int
    num_layers: int
    cpu_seconds: float
    num_replicas: int
    optimality: str

    @property
    def key(self) -> tuple[str, int, int]:
        return self.fog, self.num_layers, self.num_devices


def measured(fog: str, num_devices: int, num_layers: int) -> Row:
    drawn = random_fog(0, num_devices, num_layers, unequal=fog == "unequal")
    begun = time.process_time()
    outcome = plan_outcome(drawn.devices, drawn.model, drawn.workload)
    seconds = time.process_time() - begun
    return Row(
        fog, num_devices, num_layers, seconds, len(outcome.plan.replicas), outcome.plan.optimality
    )


def table(rows: list[Row]) -> str:
    lines = [
        "| fog | layers | devices | CPU s | replicas | what the plan says of itself |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {row.fog} | {row.num_layers} | {row.num_devices} | {row.cpu_seconds:.1f} "
        f"| {row.num_replicas} | {row.optimality} |"
        for row in rows
    ]
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Draw the growth with devices, and with layers where several numbers were measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (by_devices, by_layers) = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for fog, layers in sorted({(row.fog, row.num_layers) for row in rows}):
        line = [row for row in rows if (row.fog, row.num_layers) == (fog, layers)]
        if len(line) > 1:
            by_devices.plot(
                [row.num_devices for row in line],
                [row.cpu_seconds for row in line],
                marker="o",
                label=f"{fog}, {layers} layers",
            )
    for fog, devices in sorted({(row.fog, row.num_devices) for row in rows}):
        line = [row for row in rows if (row.fog, row.num_devices) == (fog, devices)]
        if len(line) > 2:
            by_layers.plot(
                [row.num_layers for row in line],
                [row.cpu_seconds for row in line],
                marker="o",
                label=f"{fog}, {devices} devices",
            )
    by_devices.plot(list(LIMITS), list(LIMITS.values()), "kx", label="at most")
    by_devices.set(xscale="log", yscale="log", xlabel="devices", ylabel="CPU seconds of a plan")
    by_devices.set_xticks(SIZES, [str(size) for size in SIZES])
    by_layers.set(xlabel="layers")
    for axes in (by_devices, by_layers):
        axes.grid(visible=True, alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Print the table of all rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--layers", type=int, nargs="+", default=[32])
    parser.add_argument("--fog", nargs="+", default=["mixed", "unequal"])
    parser.add_argument("--json", type=Path, help="rows; new ones are added")
    parser.add_argument("--figure", type=Path, help="draw all rows here (needs matplotlib)")
    arguments = parser.parse_args()

    found: dict[tuple[str, int, int], Row] = {}
    if arguments.json and arguments.json.exists():
        known = [Row(**entry) for entry in json.loads(arguments.json.read_text(encoding="utf-8"))]
        found = {row.key: row for row in known}
    for num_devices in arguments.devices:
        for num_layers in arguments.layers:
            for fog in arguments.fog:
                row = measured(fog, num_devices, num_layers)
                found[row.key] = row
                print(f"{fog} {num_devices}: {row.cpu_seconds:.1f} s", file=sys.stderr, flush=True)
                if arguments.json:
                    rows = [asdict(found[key]) for key in sorted(found)]
                    arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    rows_found = [found[key] for key in sorted(found)]
    print(f"Commit {commit()}, Python {platform.python_version()}, {platform.machine()}.\n")
    print(table(rows_found))
    if arguments.figure:
        draw(rows_found, arguments.figure)


if __name__ == "__main__":
    main()

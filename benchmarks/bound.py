"""How far is the planner from the best that any plan could do?

    python benchmarks/bound.py [--devices 16 32 64 128] [--fogs catalogue unequal] [--seeds 2]
        [--json FILE]

Random fogs of each size, of two sorts: devices of the catalogue by data sheet with speeds that
vary a little, and devices that are all different. Prints as Markdown what the plan serves (as
`planner.plan` finds it, with separate roles) and what the packing serves that it began with,
the bound over groups (`planner.bounds.group_bound`) and which plans it is about, the bound by
devices, the gaps, and CPU seconds of this process for everything. There are rows without KV
transfer, and rows in which no plan may be behind the best device alone (`planner.rival`):
the bound knows nothing of that rule, which is about time and not about requests per second.

With ``--json`` rows are added to those that the file has, so that a long run can be done in
pieces; the table is of all rows in the file.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.here import commit
from broker.control import Link
from planner.bounds.device_bound import device_bound
from planner.bounds.offers import ALL_PLANS
from planner.catalogue import WeightFormat, load_devices, load_models
from planner.groupings.large_fogs import search
from planner.groupings.search import Groupings
from planner.model import DeviceSpec, ModelSpec, Objective, Roles, Workload
from planner.replicas import Fog
from planner.roles import WORST

ROOT = Path(__file__).parent.parent
MODEL = "llama-3.2-1b"
WORKLOAD = Workload(prompt_tokens=512, answer_tokens=128, context_tokens=2048)


OBJECTIVES: Final = (
    Objective(rival_load=None),
    Objective(counts_kv=False, rival_load=None),
    Objective(),
)
SORTS: Final = ("catalogue", "unequal")


@dataclass(frozen=True, slots=True)
class Row:
    """One fog: rates in requests per second, CPU in seconds."""

    fog: str
    num_devices: int
    seed: int
    counts_kv: bool
    has_rival: bool
    rate: float
    packed_rate: float
    bound: float
    among: str
    device_bound: float
    cpu_seconds: float

    @property
    def key(self) -> tuple[int, str, int, bool, bool]:
        return self.num_devices, self.fog, self.seed, not self.counts_kv, self.has_rival

    @property
    def gap(self) -> float:
        """The part of the bound that the plan does not serve."""
        return 1 - self.rate / self.bound

    @property
    def device_gap(self) -> float:
        """The same of the bound by devices."""
        return 1 - self.rate / self.device_bound


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--fogs", nargs="+", choices=SORTS, default=SORTS)
    parser.add_argument("--seeds", type=int, default=2, help="fogs of each sort and size")
    parser.add_argument("--json", type=Path, help="add the rows to this file")
    arguments = parser.parse_args()

    rows = {row.key: row for row in _known(arguments.json)}
    for row in _rows(arguments.devices, arguments.fogs, arguments.seeds):
        rows[row.key] = row
        if arguments.json:
            document = [asdict(rows[key]) for key in sorted(rows)]
            arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    print(
        f"# The planner against the bound\n\nCommit {commit()}, {platform.machine()}, "
        f"Python {platform.python_version()}; {MODEL}, {WORKLOAD.prompt_tokens} prompt and "
        f"{WORKLOAD.answer_tokens} answer tokens, separate roles.\n\n"
        "| fog | devices | seed | KV transfer | rival | planned /s | packing /s | bound /s "
        "| among plans | gap | by devices /s | gap | CPU s |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for key in sorted(rows):
        row = rows[key]
        print(
            f"| {row.fog} | {row.num_devices} | {row.seed} "
            f"| {'counted' if row.counts_kv else 'free'} | {'yes' if row.has_rival else 'no'} "
            f"| {row.rate:.3f} | {row.packed_rate:.3f} "
            f"| {row.bound:.3f} | {row.among} | {row.gap:.1%} | {row.device_bound:.3f} "
            f"| {row.device_gap:.1%} | {row.cpu_seconds:.1f} |"
        )


def _known(path: Path | None) -> list[Row]:
    if path is None or not path.exists():
        return []
    return [Row(**entry) for entry in json.loads(path.read_text())]


def _rows(sizes: Sequence[int], sorts: Sequence[str], num_seeds: int) -> Iterator[Row]:
    model = load_models()[MODEL].spec(WeightFormat.INT8)
    makes = {"catalogue": catalogue_fog, "unequal": unequal_fog}
    for num_devices in sizes:
        for sort in sorts:
            for seed in range(num_seeds):
                devices = makes[sort](num_devices, seed)
                for objective in OBJECTIVES:
                    yield _row(sort, devices, model, objective, seed)


def _row(
    sort: str, devices: list[DeviceSpec], model: ModelSpec, objective: Objective, seed: int
) -> Row:
    begun = time.process_time()
    fog = Fog(devices, model, WORKLOAD, objective)
    found = search(fog, Roles.SEPARATE, seed)
    ended = time.process_time()
    groupings = Groupings(fog, Roles.SEPARATE)
    packed = [
        groupings.solution([sum(1 << device for device in group) for group in groups]).score
        for groups in found.packed
    ]
    return Row(
        fog=sort,
        num_devices=len(devices),
        seed=seed,
        counts_kv=objective.counts_kv,
        has_rival=objective.rival_load is not None,
        rate=1 / found.solution.score.request_seconds,
        packed_rate=1 / min(packed, default=WORST).request_seconds,
        bound=found.market.bound,
        among="all" if found.market.among == ALL_PLANS else "separate, min_tps",
        device_bound=device_bound(fog),
        cpu_seconds=ended - begun,
    )


def catalogue_fog(num_devices: int, seed: int) -> list[DeviceSpec]:
    """Return devices by data sheet, of a third of their memory and 60 to 100 % of their speed."""
    rng = random.Random(seed)
    catalogue = load_devices().devices
    model = load_models()[MODEL]
    names = [n for n in sorted(catalogue) if catalogue[n].memory_bytes < 20e9]
    devices = []
    for index in range(num_devices):
        device = catalogue[rng.choice(names)]
        spec = device.spec(f"d{index:03}", model, WeightFormat.INT8)
        devices.append(
            replace(
                spec,
                memory_bytes=int(min(spec.memory_bytes, 4e9) * rng.choice((0.15, 0.25, 0.35))),
                host_memory_bytes=0,
                speed=rng.choice((0.6, 0.8, 1.0)),
            )
        )
    return devices


def unequal_fog(num_devices: int, seed: int) -> list[DeviceSpec]:
    """Return devices of which no two are equal in speed, memory or link."""
    rng = random.Random(1000 + seed)
    return [
        replace(
            spec,
            memory_bytes=int(rng.uniform(0.3, 1.2) * 1e9),
            speed=rng.uniform(0.3, 1.2),
            link=Link(
                latency_seconds=rng.uniform(0.0003, 0.005),
                bytes_per_second=spec.link.bytes_per_second,
            ),
        )
        for spec in catalogue_fog(num_devices, seed)
    ]


if __name__ == "__main__":
    main()

"""How far is the planner from the best that any plan could do?

    python benchmarks/bound.py [--devices 8 16 32 64 128] [--seeds 2] [--json FILE]

Random fogs of each size, of two sorts: devices of the catalogue by data sheet with speeds that
vary a little, and devices that are all different. Prints as Markdown what the genetic
algorithm's plan serves (begun as the planner does, from `planner.packing`, and without), the
bound over groups (`planner.group_bound`), the bound by devices, the gaps, and CPU seconds of
this process. The bounds know nothing of KV transfer, so there are rows without it as well.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from broker.control import Link
from planner.catalogue import WeightFormat, load_devices, load_models
from planner.device_bound import device_bound
from planner.evolve import evolve
from planner.group_bound import market
from planner.model import DeviceSpec, ModelSpec, Objective, Roles, Workload
from planner.packing import packed_grouping
from planner.replicas import Fog

ROOT = Path(__file__).parent.parent
MODEL = "llama-3.2-1b"
WORKLOAD = Workload(prompt_tokens=512, answer_tokens=128, context_tokens=2048)


@dataclass(frozen=True, slots=True)
class Row:
    """One fog: rates in requests per second, CPU in seconds."""

    fog: str
    num_devices: int
    seed: int
    counts_kv: bool
    rate: float
    plain_rate: float
    bound: float
    device_bound: float
    search_seconds: float
    bound_seconds: float

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
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--seeds", type=int, default=2, help="fogs of each sort and size")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()

    print(
        f"# The genetic algorithm against the bound\n\nCommit {_commit()}, {platform.machine()}, "
        f"Python {platform.python_version()}; {MODEL}, {WORKLOAD.prompt_tokens} prompt and "
        f"{WORKLOAD.answer_tokens} answer tokens, separate roles.\n\n"
        "| fog | devices | seed | KV transfer | planned /s | without packing /s | bound /s | gap "
        "| by devices /s | gap | search CPU s | bound CPU s |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        flush=True,
    )
    rows = []
    for row in _rows(arguments.devices, arguments.seeds):
        rows.append(row)
        print(
            f"| {row.fog} | {row.num_devices} | {row.seed} "
            f"| {'counted' if row.counts_kv else 'free'} | {row.rate:.3f} | {row.plain_rate:.3f} "
            f"| {row.bound:.3f} | {row.gap:.1%} | {row.device_bound:.3f} | {row.device_gap:.1%} "
            f"| {row.search_seconds:.1f} | {row.bound_seconds:.1f} |",
            flush=True,
        )
    if arguments.json:
        entries = [{**asdict(row), "gap": row.gap, "device_gap": row.device_gap} for row in rows]
        document = {"commit": _commit(), "machine": platform.machine(), "rows": entries}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


def _rows(sizes: list[int], num_seeds: int) -> Iterator[Row]:
    model = load_models()[MODEL].spec(WeightFormat.INT8)
    for num_devices in sizes:
        for sort, make in (("catalogue", catalogue_fog), ("unequal", unequal_fog)):
            for seed in range(num_seeds):
                devices = make(num_devices, seed)
                for counts_kv in (True, False):
                    objective = Objective(counts_kv=counts_kv, rival_load=None)
                    yield _row(sort, devices, model, objective, seed)


def _row(
    sort: str, devices: list[DeviceSpec], model: ModelSpec, objective: Objective, seed: int
) -> Row:
    fog = Fog(devices, model, WORKLOAD, objective)
    begun = time.process_time()
    found = market(fog)
    bounded = time.process_time()
    packed = packed_grouping(fog, found)
    best = evolve(fog, Roles.SEPARATE, seed, start=[packed] if packed else [])
    searched = time.process_time()
    plain = evolve(Fog(devices, model, WORKLOAD, objective), Roles.SEPARATE, seed)
    return Row(
        fog=sort,
        num_devices=len(devices),
        seed=seed,
        counts_kv=objective.counts_kv,
        rate=1 / best.score.request_seconds,
        plain_rate=1 / plain.score.request_seconds,
        bound=found.bound,
        device_bound=device_bound(fog),
        search_seconds=searched - bounded,
        bound_seconds=bounded - begun,
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


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()

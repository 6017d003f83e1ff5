"""Random places of catalogue devices, to see what holds for fogs that nobody has chosen. Pure."""

from __future__ import annotations

import random

from broker.control import Link
from planner.catalogue import WeightFormat, load_devices, load_models
from planner.model import DeviceSpec, Objective, Workload
from planner.whatif.outcomes import Problem

_WIFI = Link(latency_seconds=0.02, bytes_per_second=2e6)


def random_place(seed: int) -> tuple[Problem, list[DeviceSpec]]:
    """Return two to four devices of the catalogue, some on a poor Wi-Fi, and a model.

    Some do other work as well, and are slower for it; the largest model fits on few of them.
    """
    rng = random.Random(seed)
    catalogue, models = load_devices().devices, load_models()
    shape = models[rng.choice(["llama-3.2-1b", "qwen3-4b", "llama-3.1-8b"])]
    names = sorted(catalogue)
    devices = [
        catalogue[rng.choice(names)].spec(
            f"d{index}",
            shape,
            WeightFormat.BFLOAT16,
            link=_WIFI if rng.random() < 0.3 else None,
            slowdown=rng.choice([1.0, 1.0, 3.0, 20.0]),
        )
        for index in range(rng.randint(2, 4))
    ]
    workload = Workload(
        prompt_tokens=rng.choice([32, 500, 1500]), answer_tokens=rng.choice([16, 200, 500])
    )
    objective = Objective(population=16, generations=5)
    return Problem(shape.spec(WeightFormat.BFLOAT16), workload, objective), devices

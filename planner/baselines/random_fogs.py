"""Random fogs of any size from the catalogue, to try searches on. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final

from broker.control import Link
from planner.catalogue import WeightFormat, load_devices, load_models
from planner.model import DeviceSpec, ModelSpec, Workload

_WEIGHTS: Final = WeightFormat.INT8
_LENGTHS: Final = ((576, 588), (2284, 1004), (1155, 211), (256, 512))
"""Mean prompts and answers: the paper's two, Azure's conversations, and a talkative one."""


@dataclass(frozen=True, slots=True)
class RandomFog:
    """Devices, and what is planned for them."""

    devices: tuple[DeviceSpec, ...]
    model: ModelSpec
    workload: Workload


def random_fog(
    seed: int, num_devices: int, num_layers: int | None = None, unequal: bool = True
) -> RandomFog:
    """Draw devices of all classes of the catalogue, and a workload.

    Args:
        seed: Equal seeds give equal fogs.
        num_devices: How many.
        num_layers: Of a model whose layers are those of Llama 3.1 8B in int8, 0.23 GB each;
            None draws 24, 32, 48 or 80.
        unequal: Whether no two devices of a class are equal: speeds, memory and links of
            each are its own. Else those of a class are twins.
    """
    rng = random.Random(f"{seed} {num_devices} {unequal}")
    layers = rng.choice((24, 32, 48, 80)) if num_layers is None else num_layers
    shape = load_models()["llama-3.1-8b"]
    model = replace(shape, name=f"llama-{layers}-layers", num_layers=layers)
    prompt, answer = rng.choice(_LENGTHS)
    catalogue = load_devices().devices
    devices = []
    for index in range(num_devices):
        # Host memory of graphics cards is left out, as in our other fogs.
        spec = catalogue[rng.choice(sorted(catalogue))].spec(f"d{index:03}", model, _WEIGHTS)
        spec = replace(spec, host_memory_bytes=0, offloaded={})
        devices.append(_with_own_numbers(spec, rng) if unequal else spec)
    workload = Workload(
        prompt_tokens=prompt, answer_tokens=answer, context_tokens=4096, min_tps=1.0
    )
    return RandomFog(tuple(devices), model.spec(_WEIGHTS), workload)


def _with_own_numbers(spec: DeviceSpec, rng: random.Random) -> DeviceSpec:
    return replace(
        spec,
        speed=rng.uniform(0.5, 1.0),
        memory_bytes=int(spec.memory_bytes * rng.uniform(0.4, 1.0)),
        link=Link(
            latency_seconds=spec.link.latency_seconds * rng.uniform(0.5, 2.0),
            bytes_per_second=spec.link.bytes_per_second * rng.uniform(0.5, 1.0),
        ),
    )

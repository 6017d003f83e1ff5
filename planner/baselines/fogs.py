"""Three fogs of our own from the catalogue of devices, and Azure's requests. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from planner.baselines.sites import FogSite
from planner.catalogue import CatalogueModel, WeightFormat, load_devices, load_models
from planner.model import DeviceSpec, Objective, Workload
from planner.simulation.workloads import (
    AZURE_CODE_ANSWER,
    AZURE_CODE_PROMPT,
    AZURE_CONVERSATION_ANSWER,
    AZURE_CONVERSATION_PROMPT,
    TokenStatistics,
)

MIN_TPS: Final = 7.0
"""The paper's slowest acceptable speed; small devices do not reach the 15 it plans with."""


@dataclass(frozen=True, slots=True)
class FogPlan:
    """A fog by catalogue.

    Attributes:
        devices: Catalogue name to how many.
        model: What is served.
    """

    devices: Mapping[str, int]
    model: CatalogueModel
    weights: WeightFormat


FOGS: Final = {
    "raspberry-pis": FogPlan(
        {"raspberry-pi-5-8gb": 4, "raspberry-pi-4-4gb": 3},
        load_models()["qwen2.5-0.5b"],
        WeightFormat.INT8,
    ),
    "one-gpu-box": FogPlan(
        {
            "rtx-3060-12gb": 1,
            "laptop-i5-1240p-16gb": 1,
            "mini-pc-n100-16gb": 2,
            "raspberry-pi-5-8gb": 3,
        },
        load_models()["llama-3.2-1b"],
        WeightFormat.INT8,
    ),
    "24-mixed": FogPlan(
        {
            "rtx-5070": 1,
            "rtx-3060-12gb": 2,
            "laptop-rtx-3060-mobile": 2,
            "apple-m2-max-32gb": 2,
            "apple-m1-16gb": 4,
            "jetson-agx-orin-32gb": 2,
            "jetson-orin-nano-8gb": 4,
            "mini-pc-7840hs-32gb": 3,
            "laptop-i5-1240p-16gb": 4,
        },
        # Blocks of one kind: a search over 24 devices is quick where splits have a closed form.
        load_models()["llama-3.1-8b"],
        WeightFormat.INT4,
    ),
}


@dataclass(frozen=True, slots=True)
class Traffic:
    """Lengths of a public trace; arrivals are chosen by whoever loads a fog.

    Attributes:
        context_tokens: Longest prompt and longest answer together.
    """

    prompt: TokenStatistics
    answer: TokenStatistics

    @property
    def context_tokens(self) -> int:
        """Positions of the longest request."""
        return round(self.prompt.points[-1][1] + self.answer.points[-1][1])

    def workload(self) -> Workload:
        """Return what plans are made for."""
        return Workload(
            prompt_tokens=round(self.prompt.mean),
            answer_tokens=round(self.answer.mean),
            context_tokens=self.context_tokens,
            min_tps=MIN_TPS,
        )


TRAFFIC: Final = {
    "azure-code": Traffic(AZURE_CODE_PROMPT, AZURE_CODE_ANSWER),
    "azure-conversation": Traffic(AZURE_CONVERSATION_PROMPT, AZURE_CONVERSATION_ANSWER),
}


def fog_site(fog: str, traffic: str, objective: Objective | None = None) -> FogSite:
    """Return one of our fogs, planned for one of the traces.

    Host memory of graphics cards is left out: our nodes keep their layers in one memory.
    """
    plan = FOGS[fog]
    model = plan.model
    catalogue = load_devices().devices
    devices: list[DeviceSpec] = []
    for name, count in plan.devices.items():
        for number in range(1, count + 1):
            spec = catalogue[name].spec(f"{name}-{number}", model, plan.weights)
            devices.append(replace(spec, host_memory_bytes=0, offloaded={}))
    return FogSite(devices, model.spec(plan.weights), TRAFFIC[traffic].workload(), objective)

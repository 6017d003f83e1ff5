"""How far the paper's replicas ran from their plan: error terms from `errors.toml`. Pure.

A replica of 15 planned tokens/s ran at 9 in the paper's adapted Splitwise. Five numbers say
where planned and measured decode speeds differ. They are fitted (`benchmarks/paper_errors.py`)
to the decode speeds of Tables VII and VIII, means and medians, and to nothing else.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from planner.paper.plans import PaperReplica
from planner.paper.published import PaperWorkload
from planner.sourced import SourcedFile

ERRORS_FILE: Final = Path(__file__).with_name("errors.toml")
_MANY_DEVICES: Final = 3


@dataclass(frozen=True, slots=True)
class ErrorTerms:
    """Measured over planned decode speed. All 1: the plan is right.

    Attributes:
        speeds: Of every replica, for each workload.
        three_devices: On top, of replicas with three devices or more.
        offload_majority: On top, of replicas with a stage that has more than half of its
            FFNs in host memory.
        light_load: Share of the planned gain from empty slots that is really there: 0.5 lets
            a lone request be half as far above the speed of a full replica as planned.
    """

    speeds: Mapping[PaperWorkload, float] = field(
        default_factory=lambda: dict.fromkeys(PaperWorkload, 1.0)
    )
    three_devices: float = 1.0
    offload_majority: float = 1.0
    light_load: float = 1.0

    def speed(self, workload: PaperWorkload, replica: PaperReplica) -> float:
        """Return measured over planned speed of a replica whose slots are all taken."""
        speed = self.speeds[workload]
        if len(replica.stages) >= _MANY_DEVICES:
            speed *= self.three_devices
        if any(2 * stage.offloads > stage.num_blocks for stage in replica.stages):
            speed *= self.offload_majority
        return speed


IDEAL: Final = ErrorTerms()
"""The plan is right."""


@cache
def load_errors(path: Path = ERRORS_FILE) -> ErrorTerms:
    """Read the fitted terms.

    Raises:
        UnsourcedNumberError: A number is missing, has no source, or is not a number.
        OSError: The file cannot be read.
    """
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    number = SourcedFile(path.name, ("fitted",)).table("decode_speed", document["decode_speed"])
    return ErrorTerms(
        speeds={workload: number(str(workload)) for workload in PaperWorkload},
        three_devices=number("three_devices"),
        offload_majority=number("offload_majority"),
        light_load=number("light_load"),
    )

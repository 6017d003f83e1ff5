"""Plans for a fog of unequal devices: `plan`, `exact` and `bound` on frozen values.

`rehearse` chooses a plan by simulation. Importing this package imports neither DEAP nor redis
nor paho nor numpy, and not the simulator before `rehearse` is asked for.
"""

from typing import TYPE_CHECKING

from broker.control import DecodeTime, LayerTimes, Link, PrefillTime
from broker.plan import Plan
from planner.lengths import buckets_of, buckets_of_quantiles
from planner.model import (
    Bucket,
    DeviceSpec,
    InfeasiblePlanError,
    ModelSpec,
    Objective,
    Roles,
    Workload,
)
from planner.planning import bound, exact, plan

if TYPE_CHECKING:
    from planner.rehearsal import rehearse

__all__ = [
    "Bucket",
    "DecodeTime",
    "DeviceSpec",
    "InfeasiblePlanError",
    "LayerTimes",
    "Link",
    "ModelSpec",
    "Objective",
    "Plan",
    "PrefillTime",
    "Roles",
    "Workload",
    "bound",
    "buckets_of",
    "buckets_of_quantiles",
    "exact",
    "plan",
    "rehearse",
]


def __getattr__(name: str) -> object:
    if name == "rehearse":
        from planner.rehearsal import rehearse

        return rehearse
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

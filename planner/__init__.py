"""Plans for a fog of unequal devices: `plan`, `exact` and `bound` on frozen values.

Importing this package imports neither DEAP nor redis nor paho nor numpy.
"""

from broker.control import DecodeTime, LayerTimes, Link, PrefillTime
from broker.plan import Plan
from planner.model import (
    DeviceSpec,
    InfeasiblePlanError,
    ModelSpec,
    Objective,
    Roles,
    Workload,
)
from planner.planning import bound, exact, plan

__all__ = [
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
    "exact",
    "plan",
]

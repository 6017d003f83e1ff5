"""Plans for a fog of unequal devices: `plan`, `exact` and `bound` on frozen values.

Importing this package imports neither DEAP nor redis nor paho.
"""

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
    "DeviceSpec",
    "InfeasiblePlanError",
    "ModelSpec",
    "Objective",
    "Roles",
    "Workload",
    "bound",
    "exact",
    "plan",
]

"""The simulator: what a plan does to waiting times, without a fog. Pure.

`simulate(Scenario(...)) -> Result`; replicas come from a plan (`replicas`) or are built by
hand, requests from `workloads`, routings from `routing`.
"""

from planner.simulation.metrics import Distribution, Record, Result, StageUse, Summary
from planner.simulation.scenario import (
    DeviceLoss,
    DeviceSlowdown,
    GroupRule,
    KvReservation,
    KvTransfer,
    Network,
    PlanChange,
    Scenario,
    Sharing,
    SimReplica,
    SimRequest,
    SimStage,
)
from planner.simulation.simulator import simulate

__all__ = [
    "DeviceLoss",
    "DeviceSlowdown",
    "Distribution",
    "GroupRule",
    "KvReservation",
    "KvTransfer",
    "Network",
    "PlanChange",
    "Record",
    "Result",
    "Scenario",
    "Sharing",
    "SimReplica",
    "SimRequest",
    "SimStage",
    "StageUse",
    "Summary",
    "simulate",
]

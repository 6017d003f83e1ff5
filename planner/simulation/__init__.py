"""The simulator: what a plan does to waiting times, without a fog. Pure.

`simulate(Scenario(...)) -> Result`; replicas come from a plan (`replicas`) or are built by
hand, requests from `workloads`, routings from `routing`.

What is approximate: all groups of a replica end their round together, so a new row waits for
at most a round where it would wait for a group; rounds with prefill count their groups as
equal and their slowest stage as never idle; hidden states take their time on a link, but do
not slow down KV on it; a prompt that is prefilled again costs what a new one costs.
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

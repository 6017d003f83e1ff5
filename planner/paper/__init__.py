"""The experiment of the E2LLM paper (arXiv 2606.03770): its fog, its plans, its tables.

Read the head of ``calibration.toml`` before quoting a result: the profile was fitted to the
published plans, so that agreement with them is partly by construction.
"""

from planner.paper.calibration import Calibration, CalibrationError, load_calibration
from planner.paper.plans import (
    Comparison,
    GroupComparison,
    PaperPlan,
    PaperReplica,
    best_plan,
    compare,
    compare_groups,
    evolved_plan,
    paper_fog,
)
from planner.paper.published import PaperWorkload, Policy, Published, load_published
from planner.paper.replicas import PaperFog, Reading, StageTimes

__all__ = [
    "Calibration",
    "CalibrationError",
    "Comparison",
    "GroupComparison",
    "PaperFog",
    "PaperPlan",
    "PaperReplica",
    "PaperWorkload",
    "Policy",
    "Published",
    "Reading",
    "StageTimes",
    "best_plan",
    "compare",
    "compare_groups",
    "evolved_plan",
    "load_calibration",
    "load_published",
    "paper_fog",
]

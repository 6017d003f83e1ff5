"""Systems that ours is compared with, on equal terms: one builder of replicas for all."""

from planner.baselines.sites import FogSite, PaperSite
from planner.baselines.systems import NOTES, System, baselines, candidates, live_systems

__all__ = ["NOTES", "FogSite", "PaperSite", "System", "baselines", "candidates", "live_systems"]

"""A plan chosen by simulation: what comes to a workload with its arrivals, not only its means.

The live planner compares plans by an analytic objective, seconds per request of the slower
phase, which knows no queues. For a workload that can be drawn or replayed, `rehearse` runs
that plan, others and those of all baselines on samples, and returns the plan under which
requests wait and take least. `benchmarks/baselines.py` reports what this gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from broker.plan import Plan
from planner.baselines import FogSite, baselines, candidates, live_systems
from planner.candidates import Served, Trials, Value, choose, total_delay
from planner.model import DeviceSpec, ModelSpec, Objective, Workload
from planner.simulation import SimRequest
from planner.simulation.routing import LEAST_ADDED, Routing


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was chosen, and what it is compared with.

    Attributes:
        plan: Version 0, state ``preparing``, as from `planner.plan`.
        routing: With which it was chosen.
        served: Means of the samples under it.
        live: The same samples under the plan that `planner.plan` returns and the gateway's
            routing. The samples were chosen by, so expect a little less on others.
    """

    plan: Plan
    routing: Routing
    served: Served
    live: Served


def rehearse(
    devices: Sequence[DeviceSpec],
    model: ModelSpec,
    workload: Workload,
    samples: Sequence[Sequence[SimRequest]],
    objective: Objective | None = None,
    seed: int = 0,
    *,
    value: Value = total_delay,
    routings: Sequence[Routing] | None = (LEAST_ADDED,),
) -> Rehearsal:
    """Return the plan that serves samples of a workload best.

    Args:
        devices: As for `planner.plan`.
        model: As for `planner.plan`.
        workload: The samples' mean lengths, and what every plan must hold.
        samples: Runs of requests (`planner.simulation.workloads`), each with its arrivals in
            seconds; twenty or more, since one run is luck.
        objective: As for `planner.plan`; its roles bind the live plan only.
        seed: Of the genetic algorithm.
        value: What is made small; mean waiting plus mean end-to-end time by default.
        routings: Which may be chosen. The default is the gateway's, so that the plan is the
            one for production; None allows all of `planner.candidates.ROUTINGS`, each a
            policy of the gateway.

    Raises:
        InfeasiblePlanError: No group of devices holds the model; says what is missing.
        ValueError: There is no sample, or no plan serves every request of the samples.
    """
    site = FogSite(devices, model, workload, objective)
    trials = Trials(site, samples)
    live = live_systems(site, seed)
    periods = [sample[-1].arrival_seconds / len(sample) for sample in samples]
    offered = candidates(site, (*live, *baselines(site, seed)), [fmean(periods)], seed)
    chosen = choose(trials, offered, value, routings=routings)
    return Rehearsal(
        site.plan(
            chosen.members,
            f"best by simulation on {len(samples)} sample{'s' * (len(samples) > 1)}",
        ),
        chosen.routing,
        trials.served(chosen),
        trials.served(live[0].candidate),
    )

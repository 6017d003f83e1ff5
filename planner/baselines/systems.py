"""The systems that ours is compared with, and the candidates of ours. Pure.

Each is a plan and a routing; docstrings say what is taken from whom and what is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from planner.baselines.searches import (
    all_both,
    best_device,
    best_pipeline,
    by_latency_under_load,
    by_slower_phase,
    by_total_latency,
    random_solution,
    search,
    tagged_by_speed,
)
from planner.baselines.sites import FogSite, PaperSite
from planner.candidates import Candidate
from planner.groupings.search import Solution
from planner.model import Roles
from planner.paper.replicas import PaperFog
from planner.paper.splitwise import SplitwiseRule
from planner.performance import Member
from planner.simulation.routing import (
    LEAST_ADDED,
    LEAST_FINISH,
    PAPER_JSQ,
    SPLITWISE,
    SPLITWISE_MIXED,
    SPLITWISE_SPEED,
    MixedPool,
    Routing,
)

NUM_RANDOM = 3
# Which of the two is better depends on the plan; others are tried on the best alone.
_TRIED_ROUTINGS = (LEAST_ADDED, LEAST_FINISH)
_NUM_BEST = 6

E2LLM = "E2LLM (paper)"
ADAPTED = "adapted Splitwise (paper)"
POOLS = "Splitwise pools"
POOLS_SPEED = "Splitwise pools, speed-aware"
POOLS_MIXED = "Splitwise pools, mixed pool"
POOLS_LENDING = "Splitwise pools, mixed pool, edge limits"
PLAN_SPLITWISE = "E2LLM plan, Splitwise routing"
PLAN_SPEED = "E2LLM plan, speed-aware Splitwise routing"
PIPELINE = "one pipeline (EdgeShard)"
COLOCATED = "colocated, chunked prefill"
DEVICE = "best single device"
HEXGEN = "total latency (HexGen-like)"
RANDOM = "random"

OURS = "ours"
OURS_UNHURRIED = "ours, few slow answers"
OURS_GATEWAY = "ours, gateway's routing"
LIVE = "live planner, gateway's routing"
LIVE_MIXED = "live planner with mixed roles, gateway's routing"
NOT_BASELINES = (OURS, OURS_UNHURRIED, OURS_GATEWAY, LIVE, LIVE_MIXED)

NOTES = {
    OURS: "chosen by simulation for least waiting plus end to end, from the analytic objective's "
    "best plans and those of all baselines; any routing",
    OURS_UNHURRIED: "the same, but each percent of requests below 7 tokens/s weighs as one percent "
    "more waiting and end to end",
    OURS_GATEWAY: "ours, chosen for the default routing of production's gateway: late binding, "
    "least added time",
    LIVE: "what a fog does today without any setting: the analytic plan, separate roles, and the "
    "gateway's routing",
    LIVE_MIXED: "the same with the setting `roles = mixed`",
    E2LLM: "separate roles, least max(N_P/sum PS, N_D/sum DS); shortest estimated wait, both "
    "replicas at arrival",
    ADAPTED: "as E2LLM, and every prefill replica prefills at least as fast as every decode one",
    POOLS: "E2LLM's groups, the fastest in prefill as prompt pool, their number balanced; fewest "
    "pending tokens, least reserved memory, blind to speed",
    POOLS_SPEED: "the same pools; pending tokens and reserved memory over planned speeds",
    POOLS_MIXED: "the same pools and original rules; a pool that is full borrows from the other",
    POOLS_LENDING: "the same, a prompt machine being full with one mean prompt instead of 8192 "
    "tokens (a second of a datacentre machine), a token machine when its slots are taken",
    PLAN_SPLITWISE: "E2LLM's plan with Splitwise's original routing: what routing alone does",
    PLAN_SPEED: "the strongest pools: tagged by E2LLM, not by speed, and speed-aware routing",
    PIPELINE: "one pipeline over the subset of devices that serves most requests, doing both",
    COLOCATED: "all replicas do both, groups for most requests per second; shortest estimated wait",
    DEVICE: "the device that holds the whole model and serves most requests, doing both",
    HEXGEN: "colocated, all devices used, groups for the least latency of a lone request",
    RANDOM: "random groups and roles that can serve; shortest estimated wait",
}


@dataclass(frozen=True, slots=True)
class System:
    """A plan and a routing under a name."""

    name: str
    candidate: Candidate


def baselines(site: FogSite | PaperSite, seed: int = 0) -> tuple[System, ...]:
    """Return all baselines that exist on a site: its models may need more than one device."""
    table = site.table
    separate = _first(search(table, by_slower_phase(table, Roles.SEPARATE), seed))
    by_speed = (
        by_slower_phase(table, Roles.SEPARATE, SplitwiseRule(table))
        if isinstance(table, PaperFog)
        else tagged_by_speed
    )
    adapted = _first(search(table, by_speed, seed))
    pools = None
    if separate is not None:
        groups = [_group(member) for member in separate.members]
        options = [option for g in groups if (option := table.options(g)) is not None]
        pools = Solution(*tagged_by_speed(options, table.workload))
    lending = replace(
        SPLITWISE_MIXED,
        mixed_pool=MixedPool(max_pending_tokens=table.workload.prompt_tokens, counts_slots=True),
    )
    colocated = _first(search(table, all_both, seed))
    total_latency = _first(search(table, by_total_latency(table.num_devices), seed))
    found: list[tuple[str, Solution | None, Routing]] = [
        (E2LLM, separate, PAPER_JSQ),
        (ADAPTED, adapted, PAPER_JSQ),
        (POOLS, pools, SPLITWISE),
        (POOLS_SPEED, pools, SPLITWISE_SPEED),
        (POOLS_MIXED, pools, SPLITWISE_MIXED),
        (POOLS_LENDING, pools, lending),
        (PLAN_SPLITWISE, separate, SPLITWISE),
        (PLAN_SPEED, separate, SPLITWISE_SPEED),
        (PIPELINE, best_pipeline(table), PAPER_JSQ),
        (COLOCATED, colocated, PAPER_JSQ),
        (DEVICE, best_device(table), PAPER_JSQ),
        (HEXGEN, total_latency, PAPER_JSQ),
    ]
    found += [
        (f"{RANDOM} {number}", random_solution(table, 1000 * seed + number), PAPER_JSQ)
        for number in range(1, NUM_RANDOM + 1)
    ]
    return tuple(
        System(name, Candidate(name, solution.members, routing))
        for name, solution, routing in found
        if solution is not None
    )


def live_systems(site: FogSite | PaperSite, seed: int = 0) -> tuple[System, ...]:
    """Return what production does by itself: the analytic plan and its gateway's routing.

    Raises:
        InfeasiblePlanError: No group of devices holds the model.
    """
    return (
        System(LIVE, Candidate(LIVE, site.live_members(seed), LEAST_ADDED)),
        System(
            LIVE_MIXED, Candidate(LIVE_MIXED, site.live_members(seed, Roles.MIXED), LEAST_ADDED)
        ),
    )


def candidates(
    site: FogSite | PaperSite,
    systems: Iterable[System],
    periods_seconds: Iterable[float],
    seed: int = 0,
) -> list[Candidate]:
    """Return what our planner chooses from.

    The best groupings by the analytic objective with mixed roles, with separate roles and
    colocated; those in which a lone request is fastest, as far as they serve the load; and
    the plans of all baselines with their own routing and with ours. Other routings are tried
    by `planner.candidates.choose` on the best of these.

    Args:
        site: Where they would run.
        systems: The baselines, and what production does.
        periods_seconds: Mean times between two requests for which low latency is sought.
        seed: Of the genetic algorithm, where there are too many devices to enumerate.
    """
    table = site.table
    # What ours has to beat comes first: the baselines as they are.
    known = list(systems)
    offered = [system.candidate for system in known]
    for name, assign in (
        ("mixed roles", by_slower_phase(table, Roles.MIXED)),
        ("separate roles", by_slower_phase(table, Roles.SEPARATE)),
        ("colocated", all_both),
        *(("low latency", by_latency_under_load(period)) for period in periods_seconds),
    ):
        for found in search(table, assign, seed, _NUM_BEST):
            offered += [Candidate(name, found.members, routing) for routing in _TRIED_ROUTINGS]
    offered += [
        replace(system.candidate, routing=routing)
        for system in known
        for routing in _TRIED_ROUTINGS
    ]
    return offered


def _first(found: Sequence[Solution]) -> Solution | None:
    return found[0] if found else None


def _group(member: Member) -> int:
    return sum(1 << device for device in member.performance.devices)

"""Which of several ways to serve a workload is best: simulate each, choose one. Pure.

An analytic objective (seconds per request of the slower phase) knows no queues: it ranks
plans for a load that never ends. Here candidates are run on samples of the stated workload,
its arrivals included, and the best is improved by one change at a time: of a role, of a
device's place, of the routing. The samples are arguments: whoever reports results draws them
with other seeds than those reported. All candidates meet the same samples, so that their
differences are not those of the draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Final, Protocol

from planner.groupings.search import GroupTable
from planner.performance import Member
from planner.simulation import Network, Scenario, SimReplica, SimRequest, simulate
from planner.simulation.routing import (
    LEAST_ADDED,
    LEAST_FINISH,
    PAPER_JSQ,
    Routing,
)
from planner.variations import in_other_groups, in_other_roles, is_allowed

ROUTINGS: Final = {
    "least-added": LEAST_ADDED,
    "least-finish": LEAST_FINISH,
    "jsq": PAPER_JSQ,
}
"""The routings among which `choose` looks, by the names of the gateway's policies."""

# (samples seen, most candidates that go on, how much worse than the best of them they may be):
# then those that are left see all samples. All meet the same samples, so a few tell who is far
# from the best.
_HALVING: Final = ((1, 24, 0.3), (3, 10, 0.15), (8, 5, 0.07))
MAX_REGROUPED: Final = 32
"""So many changes of devices' places are simulated each time that the best is improved."""


class Site(Protocol):
    """A fog with its model and workload, as search and simulation see it."""

    @property
    def table(self) -> GroupTable:
        """What each group of devices is worth."""

    @property
    def network(self) -> Network:
        """The links between the devices."""

    @property
    def kv_bytes_per_token(self) -> float:
        """KV cache of one position in all layers."""

    @property
    def num_layers(self) -> int:
        """Blocks of the model."""

    def replicas(self, members: Sequence[Member]) -> tuple[SimReplica, ...]:
        """Return the simulated replicas of a solution."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan and a routing.

    Attributes:
        origin: Who proposed the plan.
        members: Its replicas with their roles.
    """

    origin: str
    members: tuple[Member, ...]
    routing: Routing

    @property
    def key(self) -> object:
        """What makes two candidates the same."""
        return frozenset((m.role, m.performance.stages) for m in self.members), self.routing


@dataclass(frozen=True, slots=True)
class Served:
    """What became of the requests of one or more runs: means over runs.

    Attributes:
        waiting_seconds: Arrival to first decode step.
        end_to_end_seconds: Arrival to last token.
        ttft_seconds: Arrival to first token.
        waiting_p90_seconds: Of a run.
        slow_share: Requests that decode below 7 tokens per second.
        served_share: Requests that finished.
    """

    waiting_seconds: float
    end_to_end_seconds: float
    ttft_seconds: float
    waiting_p90_seconds: float
    slow_share: float
    served_share: float


Value = Callable[[Served], float]
"""What is made small."""


def total_delay(served: Served) -> float:
    """Return mean waiting plus mean end-to-end time, the default of `choose`.

    Waiting alone is made small by letting requests begin early and then decode slowly; end
    to end alone does not ask for an early begin. Their sum weighs both, and an unserved
    request makes it infinite.
    """
    if served.served_share < 1:
        return inf
    return served.waiting_seconds + served.end_to_end_seconds


def unhurried_delay(served: Served) -> float:
    """Return `total_delay`, longer by the share of requests below 7 tokens per second.

    For those who would rather wait than read slowly: where replicas do both, prompts delay
    the answers beside them, which mean times hardly show.
    """
    return total_delay(served) * (1 + served.slow_share)


def scenario(site: Site, candidate: Candidate, requests: Sequence[SimRequest]) -> Scenario:
    """Return a run of ``candidate`` on ``site``."""
    return Scenario(
        replicas=site.replicas(candidate.members),
        requests=requests,
        routing=candidate.routing,
        network=site.network,
        kv_bytes_per_token=site.kv_bytes_per_token,
        num_layers=site.num_layers,
    )


def serve(site: Site, candidate: Candidate, requests: Sequence[SimRequest]) -> Served:
    """Simulate one run."""
    summary = simulate(scenario(site, candidate, requests)).summary()
    total = summary.num_finished + summary.num_unfinished
    return Served(
        waiting_seconds=summary.waiting.mean,
        end_to_end_seconds=summary.end_to_end.mean,
        ttft_seconds=summary.ttft.mean,
        waiting_p90_seconds=summary.waiting.p90,
        slow_share=summary.below_qos[0],
        served_share=summary.num_finished / total,
    )


def mean(runs: Sequence[Served]) -> Served:
    """Return the mean of several runs."""

    def of(name: str) -> float:
        return sum(float(getattr(run, name)) for run in runs) / len(runs)

    return Served(
        of("waiting_seconds"),
        of("end_to_end_seconds"),
        of("ttft_seconds"),
        of("waiting_p90_seconds"),
        of("slow_share"),
        of("served_share"),
    )


@dataclass(slots=True)
class Trials:
    """Candidates on samples of a workload; each run is made once.

    Args:
        site: Where they run.
        samples: Requests, one sequence for each run.

    Raises:
        ValueError: There is no sample.
    """

    site: Site
    samples: Sequence[Sequence[SimRequest]]
    _known: dict[tuple[object, int], Served] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("a choice needs at least one sample")

    def runs(self, candidate: Candidate, num_samples: int | None = None) -> list[Served]:
        """Return what becomes of the first samples, one by one; of all by default."""
        runs = []
        for index in range(num_samples or len(self.samples)):
            key = candidate.key, index
            if key not in self._known:
                self._known[key] = serve(self.site, candidate, self.samples[index])
            runs.append(self._known[key])
        return runs

    def served(self, candidate: Candidate, num_samples: int | None = None) -> Served:
        """Return what becomes of the first samples on average; of all by default."""
        return mean(self.runs(candidate, num_samples))

    def best(self, candidates: Sequence[Candidate], value: Value) -> Candidate:
        """Return the best by successive halving; the first one sees all samples in any case.

        The first is whom the others have to beat, so it must not be lost to one bad draw.
        """

        def cost(candidate: Candidate, num_samples: int | None = None) -> float:
            found = value(self.served(candidate, num_samples))
            return found if isfinite(found) else inf

        kept = list(candidates)
        for num_samples, num_kept, margin in _HALVING:
            if num_samples < len(self.samples):
                costs = {c.key: cost(c, num_samples) for c in kept}
                ranked = sorted(costs.values())[:num_kept]
                limit = min(ranked[-1], ranked[0] * (1 + margin))
                kept = [c for c in kept if c is candidates[0] or costs[c.key] <= limit]
        return min(kept, key=cost)


def choose(
    trials: Trials,
    candidates: Iterable[Candidate],
    value: Value = total_delay,
    *,
    routings: Sequence[Routing] | None = None,
    max_climbs: int = 8,
    max_regrouped: int = MAX_REGROUPED,
) -> Candidate:
    """Return the candidate that serves the samples best, improved step by step.

    Most candidates are far from the best, so few see every sample: all see the first ones,
    fewer the next, a handful the rest. Then the best changes the role of one replica, the
    place of a device (`planner.variations`) or its routing, as long as that helps. Equal
    arguments give an equal choice; ties go to the first candidate.

    Args:
        trials: Where and on what candidates are tried. Runs are kept there for other choices.
        candidates: Plans with routings, in the order of preference; those with a role that a
            device's owner does not allow are left out.
        value: What is made small.
        routings: The only ones that may be chosen; candidates with another get each of these.
            None: those of the candidates, and `ROUTINGS`.
        max_climbs: Most changes to the best candidate; 0 chooses among the given ones.
        max_regrouped: So many changes of devices' places are tried for each of them.

    Raises:
        ValueError: There is no candidate, or none serves every request.
    """
    offered = list(candidates)
    if routings is not None:
        offered = [replace(c, routing=routing) for c in offered for routing in routings]
    offered = [c for c in offered if is_allowed(trials.site.table, c.members)]
    given = list({candidate.key: candidate for candidate in reversed(offered)}.values())
    given.reverse()
    if not given:
        raise ValueError("a choice needs at least one candidate")
    allowed = tuple(ROUTINGS.values()) if routings is None else routings
    best = trials.best(given, value)
    for _ in range(max_climbs):
        better = trials.best([best, *neighbours(trials.site, best, allowed, max_regrouped)], value)
        if better is best:
            break
        best = better
    if not isfinite(value(trials.served(best))):
        raise ValueError("no candidate serves every request of the samples")
    return best


def neighbours(
    site: Site,
    candidate: Candidate,
    routings: Iterable[Routing] = tuple(ROUTINGS.values()),
    max_regrouped: int = MAX_REGROUPED,
) -> Iterator[Candidate]:
    """Yield candidates that differ in the routing, one replica's role or a device's place.

    Of the places only the ``max_regrouped`` that the analytic objective likes most.
    """
    for routing in routings:
        if routing != candidate.routing:
            yield replace(candidate, routing=routing)
    for members in in_other_roles(site.table, candidate.members):
        yield replace(candidate, members=members)
    for members in in_other_groups(site.table, candidate.members, max_regrouped):
        yield replace(candidate, members=members)

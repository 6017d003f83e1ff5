"""The paper's sixteen runs, simulated: prefill speed, decode speed, waiting time. Pure.

Each cell is run with the *published* plan, since the published times are that plan's: 100
requests at a fixed period, routed by shortest estimated waiting time when they arrive, one
prompt at a time in the prefill replica, KV cache over the switch, slots as printed. Routers
believe planned speeds: the paper's planner is offline and its estimate is not said to learn.

Lengths are lognormal with the printed means; the paper prints no distribution. Seeds are
paired: in a workload a seed has the same lengths for both policies and all periods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Final

import numpy as np

from planner.paper.calibration import load_calibration
from planner.paper.errors import IDEAL, ErrorTerms
from planner.paper.plans import PaperPlan, PaperReplica, paper_fog, printed_plan
from planner.paper.published import PaperWorkload, Policy, PublishedResult, load_published
from planner.simulation import (
    Distribution,
    GroupRule,
    Network,
    Record,
    Scenario,
    SimReplica,
    SimRequest,
    SimStage,
    Summary,
    simulate,
)
from planner.simulation.routing import PAPER_JSQ, Routing
from planner.simulation.tables import decode_times, prefill_rate
from planner.simulation.workloads import fixed_period, lognormal, requests

PROMPT_CV: Final = 0.2
ANSWER_CV: Final = 0.7
"""Coefficients of variation: assumed. The questions of one data set are much alike, answers
that reason are not; no published waiting time was used to choose them."""

ROUTING: Final[Routing] = PAPER_JSQ
"""Shortest estimated waiting time by planned speeds. That routers measure (``knows_speeds``)
fits the published decode speeds slightly worse (docs/paper.md)."""

NEAR: Final = 0.25
"""A cell counts as near when the mean waiting time is off by at most this share."""


class Model(StrEnum):
    """What is simulated."""

    IDEAL = "ideal"
    """Replicas run as planned."""
    WITH_ERROR = "with-error"
    """Decode speeds are off by the fitted error terms, RAM offload among them."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of Tables VII and VIII over all seeds.

    Attributes:
        runs: Mean waiting seconds of each seed's run.
        prefill, decode, waiting: Mean over the seeds of each statistic of a run.
        below_seven: Share of requests under the paper's floor of 7 tokens/s.
        end_to_end_seconds: Mean.
    """

    workload: PaperWorkload
    period_seconds: float
    policy: Policy
    model: Model
    published: PublishedResult
    runs: tuple[float, ...]
    prefill: Distribution
    decode: Distribution
    waiting: Distribution
    end_to_end_seconds: float
    below_seven: float

    @property
    def waiting_seconds(self) -> float:
        """The median over the seeds of a run's mean waiting time."""
        return float(np.median(self.runs))

    @property
    def waiting_range(self) -> tuple[float, float]:
        """P5 and P95 over the seeds of a run's mean waiting time."""
        low, high = np.percentile(self.runs, (5, 95))
        return float(low), float(high)

    @property
    def deviation(self) -> float:
        """Our waiting time over the published one, less 1."""
        return self.waiting_seconds / self.published.waiting.mean - 1

    @property
    def is_near(self) -> bool:
        """Whether ours is within 25 % of the published mean."""
        return abs(self.deviation) <= NEAR

    @property
    def chance_if_exact(self) -> float:
        """How likely the cell would be near if this model were the truth: one run is printed."""
        return float(np.mean(np.abs(self.waiting_seconds / np.array(self.runs) - 1) <= NEAR))

    @property
    def is_inside(self) -> bool:
        """Whether the published mean is one that our seeds would give."""
        low, high = self.waiting_range
        return low <= self.published.waiting.mean <= high


Work = tuple[PublishedResult, Model, ErrorTerms, Iterable[int]]
"""The arguments of `simulate_cell`."""
Mapped = Callable[[Callable[[Work], Cell], Iterable[Work]], Iterable[Cell]]
"""As the built-in ``map``."""


def simulate_paper(
    num_seeds: int, models: Iterable[tuple[Model, ErrorTerms]], mapped: Mapped = map
) -> Iterator[Cell]:
    """Yield the sixteen cells of each model, workload by workload.

    ``mapped`` spreads them over processes when it is the ``map`` of a pool.
    """
    seeds = range(num_seeds)
    results = load_published().results
    work = [(result, model, errors, seeds) for model, errors in models for result in results]
    yield from mapped(_simulate, work)


def _simulate(work: Work) -> Cell:
    return simulate_cell(*work)


def simulate_cell(
    published: PublishedResult,
    model: Model,
    errors: ErrorTerms,
    seeds: Iterable[int],
    routing: Routing = ROUTING,
) -> Cell:
    """Return one cell: the published plan under ``errors``, once for each seed."""
    runs = [simulate(one).summary() for one in cell_scenarios(published, errors, seeds, routing)]
    return Cell(
        workload=published.workload,
        period_seconds=published.period_seconds,
        policy=published.policy,
        model=model,
        published=published,
        runs=tuple(run.waiting.mean for run in runs),
        prefill=_mean_of(runs, lambda run: run.prefill_speed),
        decode=_mean_of(runs, lambda run: run.decode_speed),
        waiting=_mean_of(runs, lambda run: run.waiting),
        end_to_end_seconds=float(np.mean([run.end_to_end.mean for run in runs])),
        below_seven=float(np.mean([run.below_qos[0] for run in runs])),
    )


def finished_records(published: PublishedResult, errors: ErrorTerms, seed: int) -> list[Record]:
    """Return the requests of one run in the order in which they finish."""
    (scenario,) = cell_scenarios(published, errors, [seed])
    return sorted(simulate(scenario).records, key=lambda record: record.finish)


def paper_requests(
    workload: PaperWorkload, period_seconds: float, seed: int
) -> tuple[SimRequest, ...]:
    """Return a run's requests."""
    published = load_published()
    means = published.workloads[workload]
    return requests(
        fixed_period(published.num_requests, period_seconds),
        lognormal(means.prompt_tokens, PROMPT_CV),
        lognormal(means.answer_tokens, ANSWER_CV),
        np.random.default_rng(seed),
    )


def cell_scenarios(
    published: PublishedResult,
    errors: ErrorTerms,
    seeds: Iterable[int],
    routing: Routing = ROUTING,
) -> Iterator[Scenario]:
    """Yield the runs of a cell as scenarios, one for each seed."""
    calibration = load_calibration()
    replicas = sim_replicas(published_plan(published.workload, published.policy), errors)
    for seed in seeds:
        yield Scenario(
            replicas=replicas,
            requests=paper_requests(published.workload, published.period_seconds, seed),
            routing=routing,
            network=_network(),
            kv_bytes_per_token=calibration.kv_bytes_per_token,
            num_layers=calibration.model.num_layers,
        )


def sim_replicas(plan: PaperPlan, errors: ErrorTerms = IDEAL) -> tuple[SimReplica, ...]:
    """Return a plan's replicas as the simulator has them.

    Only decoding is off: the plans prefill on single devices, whose rates are published.
    """
    return tuple(
        _sim_replica(f"replica-{index}", plan.workload, replica, errors)
        for index, replica in enumerate(plan.replicas)
    )


def _sim_replica(
    name: str, workload: PaperWorkload, replica: PaperReplica, errors: ErrorTerms
) -> SimReplica:
    means = load_published().workloads[workload]
    stages, start = [], 0
    for stage in replica.stages:
        steps = _with_light_load(replica, stage.decode_seconds, errors.light_load)
        stages.append(
            SimStage(
                device=stage.device,
                prefill_seconds=prefill_rate(means.prompt_tokens / stage.prefill_seconds),
                decode_seconds=decode_times(list(enumerate(steps, start=1))),
                layers=(start, start + stage.num_blocks),
                decode_factor=1 / errors.speed(workload, replica),
            )
        )
        start += stage.num_blocks
    return SimReplica(
        id=name,
        role=replica.role,
        stages=tuple(stages),
        slots=replica.slots,
        groups=GroupRule.PAPER,
    )


def _with_light_load(
    replica: PaperReplica, steps: tuple[float, ...], share: float
) -> tuple[float, ...]:
    """Return a stage's steps with a part of what empty slots gain.

    The speed of a full replica stays as it is, so routers, which estimate with full
    replicas, are not told of this error either.
    """
    full = replica.tokens_per_second(replica.slots)
    size = len(replica.stages)
    found = []
    for rows, seconds in enumerate(steps, start=1):
        planned = replica.tokens_per_second(min(rows * size, replica.slots))
        found.append(seconds * planned / (full + share * (planned - full)))
    return tuple(found)


@cache
def published_plan(workload: PaperWorkload, policy: Policy) -> PaperPlan:
    """Return a printed plan, literally, with the calibrated times of its stages."""
    return printed_plan(paper_fog(workload), workload, policy)


@cache
def _network() -> Network:
    return Network(links={device.id: device.link for device in load_calibration().devices})


def _mean_of(runs: list[Summary], of: Callable[[Summary], Distribution]) -> Distribution:
    found = [of(run) for run in runs]
    return Distribution(
        *(
            float(np.mean([getattr(one, name) for one in found]))
            for name in ("mean", "deviation", "p50", "p90", "p99")
        )
    )

"""A provable upper bound on the requests per second of any plan, close to the best. Pure.

**Prices.** Let an hour of each device ``d`` have a price ``u_d >= 0``, a prompt be worth
``w`` and an answer ``1 - w``, with ``0 <= w <= 1``. Call prices fair when no group of devices,
run as a replica, earns more than it costs: with ``p_g`` prompts or ``q_g`` answers per second,

    w p_g <= sum of u_d over g,    (1 - w) q_g <= sum of u_d over g,    for every group g.

**Why fair prices bound every plan.** A plan's replicas are disjoint groups; replica ``g``
gives a part ``x_g`` of its time to prefill and a part ``y_g`` to decode, with
``x_g + y_g <= 1`` (one of them 0 unless its role is `both`). When the plan serves ``R``
requests per second, ``R <= sum x_g p_g`` and ``R <= sum y_g q_g``. Weighted by ``w`` and
``1 - w`` and added:

    R <= sum (x_g w p_g + y_g (1 - w) q_g) <= sum (x_g + y_g) sum_{d in g} u_d <= sum of u_d.

So any fair prices will do, however they were found; by linear programming duality the lowest
equal the most that time-shared groups could serve. If groups earn at most ``f`` times what
they cost, the prices times ``f`` are fair: that is how every set of prices becomes a bound.

**Finding low ones.** `planner.bounds.prices` proposes the lowest prices that are fair to the groups
known so far, `planner.bounds.pricing` finds groups to which they are not, and the factor. Between
the proposal and the best prices so far lies what is tried next, because proposals swing.

**The factor.** In a small fog all groups are evaluated, each with the most that any of its splits
gives (`Fog.most`), and the factor is exact. In a larger one a lone device is evaluated likewise,
and for two or more the factor is estimated from above, in these steps:

1. A replica with slowest stage ``T`` serves at most ``1 / T`` prompts per second. A decode
   step of ``s`` requests in ``G`` groups of ``ceil(s / G)`` rows lasts ``S >= G T``, and ``S``
   is at least the sum of all stages and hops; it serves ``s / S`` tokens per second, and with
   two slots or more ``S <= 1 / min_tps``. What else may slow a replica is left out: too few
   prompts in flight, the way of prompts through the links, fewer stages than ``G / 2``.
2. The paces ``S`` are cut into brackets ``(a, b]``. In a bracket a group earns at most what
   it would at ``a``, and costs at least as much as the cheapest group that keeps ``b``.
3. A group keeps ``b`` only if it carries all layers when each device holds as many as it can
   in the stage's time, in its memory beside the KV cache (moving feed-forward parts to host
   memory as far as it has any, and slower by that), if two different devices also bear
   embedding and head, and if no link is busy for longer. With unequal layers "as many" is
   the most work in any range of layers that the device may hold, and all ranges together
   have the work of the model (`planner.bounds.stage_tables`).
4. The limit on the sum of stages and hops is priced (Lagrange): for any price ``v >= 0`` of a
   second, ``cost >= min (cost + v (sum - b))`` over all groups, kept limit or not. A stage's
   time is at least a line in its work, and a direct way between two devices counts half at
   each end, the cheapest way at each.
5. What is left, a covering knapsack with fixed charges, is solved exactly
   (`planner.bounds.cheapest_groups`), equal devices standing for each other.

Each step only adds groups or makes them earn more or cost less, so the factor is never too
small. It holds for separate and mixed roles, idle devices, host memory, direct ways and
unequal blocks. It relies on `planner.cost` and on the formulas of `planner.promises`; what
lowers a plan's rate further (`planner.terms`: targets, and KV transfer) is left out and keeps
it valid.

**Among fewer plans** (`planner.bounds.offers.Among`) it is lower. Where no replica may do both,
every request's KV cache leaves the replica that prefilled it and enters the one that decodes it.
Through one broker the links of a stage carry the cache of its layers, so ``p_g`` and ``q_g``
are also at most what the busiest link of the group can send and receive, and step 3 gives a
stage no more layers than that allows. Where no stream may get less than ``min_tps``, a group
of which one request alone misses it serves no answers, ``q_g = 0``, and the limit of step 1
holds for one slot too. The argument is the same with these smaller rates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Final, NamedTuple

import numpy as np

from broker.plan import Role
from planner.bounds.device_bound import device_bound, device_rates
from planner.bounds.least_links import least_receive_seconds, least_send_seconds
from planner.bounds.offers import ALL_PLANS, Among
from planner.bounds.prices import PriceProgram
from planner.bounds.pricing import Column, Prices, Pricing
from planner.flow import phase_rates
from planner.masks import members_of
from planner.performance import Options
from planner.replicas import Fog

# Proposals are worth asking about up to this many times; each answer is a bound.
ROUNDS: Final = 40
# The search ends after so many paces of offers, each a dynamic program over the devices: of
# 30 devices or fewer, and of 80 or more.
_SOLVED_PER_DEVICE: Final = 400
_SOLVED_OF_FEW: Final = 12_000
_SOLVED_OF_MANY: Final = 32_000
# With more layers each takes longer, and there are fewer.
_USUAL_LAYERS: Final = 32
# The search ends when the bound is this close to the lowest prices that could be fair.
_TOLERANCE: Final = 0.01
# The part of the best prices so far in what is tried next.
_INERTIA: Final = 0.6
# Of groups that were evaluated before, those that earn most are known from the start.
_KNOWN_PER_DEVICE: Final = 40
# Rounding in sums of prices and times.
_SLACK: Final = 1 + 1e-6
_LEAST: Final = 1e-12


class Market(NamedTuple):
    """What the search for prices found.

    Attributes:
        bound: Requests per second that none of the plans exceeds.
        prices: Fair ones, which add up to the bound or a little less.
        groups: By the kinds of their devices, groups that earned most at some prices.
        among: The plans meant.
    """

    bound: float
    prices: Prices
    groups: tuple[tuple[int, ...], ...] = ()
    among: Among = ALL_PLANS


def group_bound(fog: Fog, rounds: int = ROUNDS, among: Among = ALL_PLANS) -> float:
    """Return requests per second that no plan of the fog exceeds; see `market`."""
    return market(fog, rounds, among).bound


def market(fog: Fog, rounds: int = ROUNDS, among: Among = ALL_PLANS) -> Market:
    """Return the bound of a fog, and the prices and groups behind it.

    Never above `planner.bounds.device_bound`. What the fog has evaluated already, as in a search,
    makes it faster.

    Args:
        fog: Up to its objective's ``exact_devices`` every group is evaluated.
        rounds: Most questions to `Pricing`; more give a lower bound.
        among: The plans that it is to bound.
    """
    most = device_bound(fog)
    if most <= 0:
        return Market(0.0, Prices(np.zeros(0), 0.0), (), among)
    best = _device_prices(fog)
    if fog.num_devices <= fog.objective.exact_devices:
        return _exact(fog, best, most, among)
    alone = Columns.of_all_splits(fog, [1 << d for d in range(fog.num_devices)], among)
    known = Columns.of_found(fog, fog.evaluated(), among)
    pricing = Pricing(fog, among)
    program = PriceProgram(pricing.counts, most)
    program.add(known.dearest(best, _KNOWN_PER_DEVICE * fog.num_devices))
    bound = most
    solved = min(max(_SOLVED_PER_DEVICE * fog.num_devices, _SOLVED_OF_FEW), _SOLVED_OF_MANY)
    enough = solved * min(_USUAL_LAYERS / fog.model.num_layers, 1.0) ** 0.75
    groups: dict[tuple[int, ...], None] = {}
    for _ in range(rounds):
        proposal = program.solve()
        if proposal is None or bound <= alone.cost(proposal) * (1 + _TOLERANCE):
            break
        if pricing.num_solved > enough:
            break
        tried = _between(best, proposal)
        factor, columns = pricing.most(tried)
        factor = max(factor, alone.factor(tried))
        program.add(columns)
        groups.update(dict.fromkeys(pricing.candidates()))
        found = float(factor * alone.cost(tried))
        if found < bound:
            bound, best = found, Prices(tried.devices * factor, tried.prompt)
    return Market(min(most, bound * _SLACK), best, tuple(groups), among)


def _exact(fog: Fog, start: Prices, most: float, among: Among) -> Market:
    """Return the optimum of the linear program over all groups."""
    groups = Columns.of_all_splits(fog, range(1, 1 << fog.num_devices), among)
    program = PriceProgram(groups.device_counts, most)
    program.add(groups.columns)
    prices = program.solve() or start
    found = groups.factor(prices) * groups.cost(prices) * _SLACK
    return Market(min(most, found), prices, (), among)


class Columns:
    """Groups whose rates are known, as columns.

    Args:
        fog: Of the groups.
        columns: For each phase that a group may have, one.
    """

    def __init__(self, fog: Fog, columns: Sequence[Column]) -> None:
        self.device_counts = [fog.kinds.count(kind) for kind in range(max(fog.kinds) + 1)]
        self.columns = columns

    @classmethod
    def of_found(
        cls,
        fog: Fog,
        groups: Iterable[tuple[Sequence[int], Options]],
        among: Among,
        longest_prefill: float = inf,
        longest_decode: float = inf,
    ) -> Columns:
        """Return groups at the rates of the splits that were found for them.

        Args:
            fog: Of the groups.
            groups: The kinds of their devices, and what they are worth.
            among: Which plans they are for.
            longest_prefill: Groups that take longer for a lone prompt have no column of
                prefill; seconds.
            longest_decode: The same of a lone answer.
        """
        work, counts_links = fog.workload, among.counts_links(fog)
        columns: list[Column] = []
        for kinds, options in groups:
            counts = np.bincount(kinds, minlength=max(fog.kinds) + 1)
            prompts = answers = 0.0
            for found in (options.prefill, options.decode, options.both):
                most_prompts, most_answers = phase_rates(found, work)
                if counts_links:
                    most_prompts = min(most_prompts, 1 / max(found.send_seconds, _LEAST))
                    most_answers = min(most_answers, 1 / max(found.receive_seconds, _LEAST))
                prompts = max(prompts, most_prompts)
                if found.keeps_min_tps or not among.keeps_min_tps:
                    answers = max(answers, most_answers)
            if options.prefill.ttft_seconds <= longest_prefill and Role.PREFILL in options.roles:
                columns.append(Column(counts, True, prompts))
            is_in_time = work.answer_tokens * options.decode.tpot_seconds <= longest_decode
            if is_in_time and Role.DECODE in options.roles:
                columns.append(Column(counts, False, answers))
        return cls(fog, columns)

    @classmethod
    def of_all_splits(cls, fog: Fog, groups: Iterable[int], among: Among) -> Columns:
        """Return groups (bit masks) at rates that no split of them exceeds."""
        columns: list[Column] = []
        devices = device_rates(fog)
        for group in groups:
            options, most = fog.options(group), fog.most(group)
            if options is None or most is None:
                continue
            members = members_of(group)
            kinds = [fog.kinds[device] for device in members]
            counts = np.bincount(kinds, minlength=max(fog.kinds) + 1)
            prompts = most.prefill_rate / fog.workload.prompt_tokens
            answers = most.decode_rate / fog.workload.answer_tokens
            if not fog.tries_all_splits(group):
                prompts = sum(devices[device][0] for device in members)
                answers = sum(devices[device][1] for device in members)
            if among.counts_links(fog):
                prompts = min(prompts, 1 / max(least_send_seconds(fog, members), _LEAST))
                answers = min(answers, 1 / max(least_receive_seconds(fog, members), _LEAST))
            if among.keeps_min_tps and not options.decode.keeps_min_tps:
                answers = 0.0
            if Role.PREFILL in options.roles:
                columns.append(Column(counts, True, prompts))
            if Role.DECODE in options.roles:
                columns.append(Column(counts, False, answers))
        return cls(fog, columns)

    def cost(self, prices: Prices) -> float:
        """Return the price of all devices."""
        return float(np.dot(self.device_counts, prices.devices))

    def factor(self, prices: Prices) -> float:
        """Return the most that any of the groups earns for each unit of what it costs."""
        return max((_factor(column, prices) for column in self.columns), default=0.0)

    def dearest(self, prices: Prices, num: int) -> list[Column]:
        """Return the columns that earn most for what they cost."""
        return sorted(self.columns, key=lambda column: -_factor(column, prices))[:num]


def _factor(column: Column, prices: Prices) -> float:
    worth = prices.prompt if column.is_prefill else 1 - prices.prompt
    earned = worth * column.requests_per_second
    cost = float(column.counts @ prices.devices)
    if earned <= 0:
        return 0.0
    return earned / cost if cost > 0 else inf


def _device_prices(fog: Fog) -> Prices:
    """Return the prices behind the bound by devices: each costs what it could earn."""
    prompts, answers = np.array(device_rates(fog)).T
    worths = answers / (answers + prompts)
    costs = [np.maximum(w * prompts, (1 - w) * answers) for w in worths]
    lowest = int(np.argmin([cost.sum() for cost in costs]))
    first = [fog.kinds.index(kind) for kind in range(max(fog.kinds) + 1)]
    return Prices(costs[lowest][first], float(worths[lowest]))


def _between(best: Prices, proposal: Prices) -> Prices:
    return Prices(
        _INERTIA * best.devices + (1 - _INERTIA) * proposal.devices,
        _INERTIA * best.prompt + (1 - _INERTIA) * proposal.prompt,
    )

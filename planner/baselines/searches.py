"""Groupings under other people's rules: what each baseline makes of the same replicas. Pure.

Every baseline gets the groups' splits, speeds and slots from the same table as our planner
(one builder of replicas, one ``min_tps``, one cap of slots). What differs is which groups and
roles a rule of its own prefers, so each baseline here is one function from groups to a
score and members. The search over groupings is ours: exact up to
`Objective.exact_devices`, the genetic algorithm beyond.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from broker.plan import Role
from planner.groupings.oracle import enumerate_groupings
from planner.groupings.search import Groupings, GroupTable, Solution, max_enumerated
from planner.model import Roles, Workload
from planner.performance import Member, Options
from planner.roles import WORST, RoleRule, Score, choose_roles, score

Choice = tuple[Score, tuple[Member, ...]]
Assign = Callable[[Sequence[Options], Workload], Choice]
"""Groups that each hold the model to roles, and how good that is."""


class RuledGroupings(Groupings):
    """Scores of groupings by a rule; remembers the best of them."""

    def __init__(self, fog: GroupTable, assign: Assign) -> None:
        super().__init__(fog, Roles.MIXED)
        self._assign = assign
        self._found: dict[tuple[int, ...], Solution] = {}

    def solution(self, groups: Iterable[int]) -> Solution:
        """Return the rule's use of a grouping; groups that cannot hold the model are idle."""
        usable = tuple(sorted(group for group in groups if self.fog.options(group) is not None))
        found = self._found.get(usable)
        if found is None:
            options = [option for g in usable if (option := self.fog.options(g)) is not None]
            value, members = self._assign(options, self.fog.workload) if options else (WORST, ())
            found = self._found[usable] = Solution(value, members)
        return found

    def best(self, number: int) -> list[Solution]:
        """Return the best that were seen, the best first."""
        known = [found for found in self._found.values() if found.score < WORST]
        return sorted(known, key=lambda found: found.score)[:number]

    def __len__(self) -> int:
        return len(self._found)


def search(table: GroupTable, assign: Assign, seed: int = 0, num_best: int = 1) -> list[Solution]:
    """Return the best groupings by a rule, the best first; empty when there is none."""
    groupings = RuledGroupings(table, assign)
    if table.num_devices <= table.objective.exact_devices:
        enumerate_groupings(table, Roles.MIXED, groupings)
    else:
        from planner.groupings.evolve import evolve  # Brings DEAP: only for those who call this.

        evolve(table, Roles.MIXED, seed, groupings)
    return groupings.best(num_best)


# --- rules ----------------------------------------------------------------------------------


def by_slower_phase(table: GroupTable, roles: Roles, rule: RoleRule | None = None) -> Assign:
    """The paper's objective, ``max(N_P / sum PS, N_D / sum DS)``, with these roles.

    Roles are chosen as our planner chooses them (`planner.roles.choose_roles`).
    """
    most = max_enumerated(table)

    def assign(groups: Sequence[Options], workload: Workload) -> Choice:
        return choose_roles(groups, workload, roles, rule, max_enumerated=most)

    return assign


def all_both(groups: Sequence[Options], workload: Workload) -> Choice:
    """Colocated serving: every replica prefills and decodes; most requests per second."""
    members = tuple(Member(Role.BOTH, group.both) for group in groups)
    return score(members, workload, Roles.MIXED), members


def by_total_latency(num_devices: int) -> Assign:
    """HexGen as the paper sees it: least total time of a request through its pipeline.

    Colocated replicas. Each request's latency alone, mean over replicas by the requests they
    serve; all devices are used as far as the model fits, since otherwise the best plan for a
    lone request would be the fastest device and nothing else. HexGen's own fitness is the
    share of requests within a deadline; tensor parallelism is left out (no fog has the
    links for it).
    """

    def assign(groups: Sequence[Options], workload: Workload) -> Choice:
        value, members = all_both(groups, workload)
        return value._replace(
            num_slow=num_devices - value.num_devices,
            objective_seconds=_latency(members, workload),
        ), members

    return assign


def by_latency_under_load(period_seconds: float, headroom: float = 1.25) -> Assign:
    """Our proposal for light loads: colocated, least latency of what serves the load.

    Args:
        period_seconds: Mean time between two requests.
        headroom: How much more than the load has to be served.
    """

    def assign(groups: Sequence[Options], workload: Workload) -> Choice:
        value, members = all_both(groups, workload)
        is_short = value.request_seconds * headroom > period_seconds
        return value._replace(
            num_slow=int(is_short),
            objective_seconds=value.request_seconds if is_short else _latency(members, workload),
        ), members

    return assign


def _latency(members: Sequence[Member], workload: Workload) -> float:
    """Return a lone request's time, mean over replicas by the requests they serve."""
    total = weight = 0.0
    for found in (member.performance for member in members):
        seconds = (
            workload.prompt_tokens / found.prefill_rate + workload.answer_tokens / found.decode_rate
        )
        total += (found.ttft_seconds + workload.answer_tokens * found.tpot_seconds) / seconds
        weight += 1 / seconds
    return float(f"{total / weight:.9g}")


def tagged_by_speed(groups: Sequence[Options], workload: Workload) -> Choice:
    """Splitwise's pools: the fastest replicas in prefill are the prompt pool.

    Their number is the one that balances the phases best. Of equally fast ones those slower
    in decode go first, so that no other roles under this rule serve more. One group alone
    does both, and is worse than any two.
    """
    order = sorted(
        range(len(groups)),
        key=lambda g: (-groups[g].prefill.prefill_rate, groups[g].decode.decode_rate, g),
    )
    choices = []
    for num_prompt in range(1, len(groups)):
        prompt = set(order[:num_prompt])
        members = tuple(
            Member(Role.PREFILL, group.prefill)
            if g in prompt
            else Member(Role.DECODE, group.decode)
            for g, group in enumerate(groups)
        )
        choices.append((score(members, workload, Roles.SEPARATE), members))
    if choices:
        return min(choices, key=lambda choice: choice[0])
    _, members = all_both(groups, workload)
    return score(members, workload, Roles.SEPARATE), members


def best_pipeline(table: GroupTable) -> Solution | None:
    """EdgeShard: one pipeline over whichever devices serve most requests, doing both.

    EdgeShard's dynamic program goes over subsets of devices. Here all subsets are tried up
    to `Objective.exact_devices`; beyond, devices are put in, taken out and exchanged while
    that helps, from the fastest possible beginnings.
    """

    def value(group: int) -> Score:
        options = table.options(group)
        return WORST if options is None else all_both([options], table.workload)[0]

    num_devices = table.num_devices
    everyone = range(1, 1 << num_devices)
    if num_devices <= table.objective.exact_devices:
        best = min(everyone, key=value, default=0)
    else:
        best = _climbed_group(num_devices, value)
    options = table.options(best) if best else None
    return None if options is None else Solution(*all_both([options], table.workload))


def _climbed_group(num_devices: int, value: Callable[[int], Score]) -> int:
    full = (1 << num_devices) - 1
    singles = sorted((1 << d for d in range(num_devices)), key=value)
    starts = [singles[0], full]
    best = min(starts, key=value)
    for group in starts:
        while True:
            near = [group ^ (1 << d) for d in range(num_devices) if group ^ (1 << d)]
            near += [
                group ^ (1 << inside) ^ (1 << outside)
                for inside in range(num_devices)
                for outside in range(num_devices)
                if group >> inside & 1 and not group >> outside & 1
            ]
            better = min(near, key=value)
            if value(better) >= value(group):
                break
            group = better
        best = min(best, group, key=value)
    return best


def best_device(table: GroupTable) -> Solution | None:
    """Return the best device that holds the whole model, doing both; None if none does."""
    options = [table.options(1 << device) for device in range(table.num_devices)]
    alone = [Solution(*all_both([o], table.workload)) for o in options if o is not None]
    return min(alone, key=lambda found: found.score, default=None)


def random_solution(table: GroupTable, seed: int, attempts: int = 1000) -> Solution | None:
    """Return a random grouping with random roles that can serve; None if none turns up."""
    rng = random.Random(seed)
    for _ in range(attempts):
        num_groups = rng.randint(1, table.num_devices)
        groups = [0] * num_groups
        for device in range(table.num_devices):
            groups[rng.randrange(num_groups)] |= 1 << device
        members = []
        for group in groups:
            options = table.options(group) if group else None
            role = rng.choice((Role.PREFILL, Role.DECODE, Role.BOTH))
            if options is not None:
                members.append(Member(role, getattr(options, role.value)))
        value = score(members, table.workload, Roles.MIXED)
        if value < WORST:
            return Solution(value, tuple(members))
    return None

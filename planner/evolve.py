"""The genetic algorithm of the paper (section 1.7 of its description), built on DEAP.

An individual has the paper's two chromosomes: an order of the devices, and sizes whose
slices of that order are the replicas. Ours adds a first size, which may be 0: the devices
of that slice are left idle. The paper leaves selection and crossover open; here they are a
tournament of three and ordered crossover.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, Final

from deap import base, tools

from planner.model import Roles
from planner.roles import Score
from planner.search import NOTHING, Groupings, GroupTable, Solution

# The paper's mix: mutate 30 % of the children, and of these 20 % by a swap in the order,
# 50 % by new sizes from a random point on, 15 % by all sizes new, 15 % by both new.
MUTATION_PROBABILITY: Final = 0.3
MUTATION_MIX: Final = (0.20, 0.50, 0.15, 0.15)
_TOURNAMENT: Final = 3
# The local search at the end looks at no more new groupings than this, however many devices.
_CLIMB_GROUPINGS: Final = 1000
# Up to so many devices it also moves two at a time.
_PAIR_DEVICES: Final = 16


class _Fitness(base.Fitness):  # type: ignore[misc]  # DEAP ships no types
    weights = (-1.0,) * len(Score._fields)


class _Individual:
    """An order of devices, and ``sizes[0]`` idle ones before the sizes of the replicas."""

    def __init__(self, order: Sequence[int], sizes: Sequence[int]) -> None:
        self.order = list(order)
        self.sizes = list(sizes)
        self.fitness: Any = _Fitness()

    def groups(self) -> list[int]:
        """Return the replicas as bit masks."""
        masks, start = [], self.sizes[0]
        for size in self.sizes[1:]:
            masks.append(sum(1 << device for device in self.order[start : start + size]))
            start += size
        return masks

    def key(self) -> tuple[int, ...]:
        """Return the grouping, whatever the orders within and between its groups."""
        return tuple(sorted(self.groups()))

    def copy(self) -> _Individual:
        return _Individual(self.order, self.sizes)


def evolve(
    fog: GroupTable,
    roles: Roles,
    seed: int,
    groupings: Groupings | None = None,
    start: Iterable[Sequence[Sequence[int]]] = (),
) -> Solution:
    """Return the best grouping that the genetic algorithm finds.

    Args:
        fog: Devices, model, workload and objective.
        roles: Which roles a grouping may use.
        seed: Equal seeds give equal results.
        groupings: Scores to share with another search.
        start: Groupings (replicas as lists of device indexes) to begin with, as that of the
            running plan.
    """
    # An empty `Groupings` is false, so `or` would lose what is to be shared.
    shared = Groupings(fog, roles) if groupings is None else groupings
    # DEAP draws from the global generator: seeded here and given back as it was.
    state = random.getstate()
    random.seed(seed)
    try:
        return _evolve(fog, shared, start)
    finally:
        random.setstate(state)


def _evolve(
    fog: GroupTable, groupings: Groupings, start: Iterable[Sequence[Sequence[int]]]
) -> Solution:
    objective, num_devices = fog.objective, fog.num_devices
    if not num_devices:
        return NOTHING
    population = [_from_groups(groups, num_devices) for groups in start]
    population += [
        _random_individual(num_devices)
        for _ in range(max(objective.population - len(population), 0))
    ]
    elites: dict[tuple[int, ...], _Individual] = {}
    _score(population, groupings)
    for _ in range(objective.generations):
        for individual in population:
            elites.setdefault(individual.key(), individual)
        best = sorted(elites.values(), key=_order)[: objective.elites]
        elites = {individual.key(): individual for individual in best}
        parents = tools.selTournament(population + best, objective.population, _TOURNAMENT)
        children: list[_Individual] = []
        for index, parent in enumerate(parents):
            # Each elite is crossed with the population in turn.
            child = _crossed(best[index % len(best)] if index % 2 else parents[index - 1], parent)
            if random.random() < MUTATION_PROBABILITY:
                _mutate(child)
            children.append(child)
        population = _without_twins(children, num_devices)
        _score(population, groupings)
    for individual in population:
        elites.setdefault(individual.key(), individual)
    best = sorted(elites.values(), key=_order)[: objective.elites]
    budget = _CLIMB_GROUPINGS + len(groupings)
    found = min((_climbed(winner, groupings, budget) for winner in best), key=lambda s: s.score)
    return Solution(found.score, found.members, len(groupings))


def _order(individual: _Individual) -> tuple[Any, ...]:
    return (tuple(-value for value in individual.fitness.wvalues), individual.key())


def _score(individuals: Iterable[_Individual], groupings: Groupings) -> None:
    for individual in individuals:
        individual.fitness.values = groupings.solution(individual.groups()).score


def _without_twins(children: Iterable[_Individual], num_devices: int) -> list[_Individual]:
    """Replace individuals that mean a grouping already there: new blood keeps it looking."""
    seen: set[tuple[int, ...]] = set()
    population = []
    for child in children:
        fresh = _random_individual(num_devices) if child.key() in seen else child
        seen.add(fresh.key())
        population.append(fresh)
    return population


def _random_individual(num_devices: int) -> _Individual:
    order = random.sample(range(num_devices), num_devices)
    return _Individual(order, _random_sizes(num_devices))


def _random_sizes(num_devices: int) -> list[int]:
    # Half of the individuals leave nobody idle.
    idle = random.choice((0, random.randint(0, num_devices - 1)))
    return [idle, *_random_parts(num_devices - idle)]


def _random_parts(total: int) -> list[int]:
    parts = []
    while total:
        parts.append(random.randint(1, total))
        total -= parts[-1]
    random.shuffle(parts)
    return parts


def _from_groups(groups: Sequence[Sequence[int]], num_devices: int) -> _Individual:
    used = [device for group in groups for device in group]
    idle = [device for device in range(num_devices) if device not in used]
    return _Individual([*idle, *used], [len(idle), *(len(group) for group in groups)])


def _crossed(one: _Individual, other: _Individual) -> _Individual:
    """Cross the orders, and take the sizes whole from one parent, as the paper does."""
    first, second = list(one.order), list(other.order)
    if len(first) > 1:
        tools.cxOrdered(first, second)
    return _Individual(first, random.choice((one, other)).sizes)


def _mutate(individual: _Individual) -> None:
    (kind,) = random.choices(("swap", "tail", "sizes", "both"), MUTATION_MIX)
    num_devices = len(individual.order)
    if kind == "swap" and num_devices > 1:
        i, j = random.sample(range(num_devices), 2)
        individual.order[i], individual.order[j] = individual.order[j], individual.order[i]
    elif kind == "tail":
        point = random.randint(1, len(individual.sizes))
        kept = individual.sizes[:point]
        individual.sizes = [*kept, *_random_parts(num_devices - sum(kept))]
    if kind in ("sizes", "both"):
        individual.sizes = _random_sizes(num_devices)
    if kind == "both":
        random.shuffle(individual.order)


def _climbed(winner: _Individual, groupings: Groupings, budget: int) -> Solution:
    """Move or swap devices while that helps: the last step to the optimum."""
    num_devices = len(winner.order)
    groups = [0, *winner.key()]
    used = 0
    for group in groups:
        used |= group
    groups[0] = ((1 << num_devices) - 1) & ~used
    best = groupings.solution(groups[1:])
    improved = True
    while improved and len(groupings) < budget:
        improved = False
        for candidate in _near(groups, num_devices):
            found = groupings.solution(candidate[1:])
            if found.score < best.score:
                best, groups, improved = found, candidate, True
                break
    return best


def _near(groups: list[int], num_devices: int) -> Iterable[list[int]]:
    """Yield groupings near this one; the first group is the idle one and may be empty.

    One device goes to another group, or two change places, or two go to the same group: a
    replica often becomes possible, or worth while, with two devices only.
    """
    home = {d: g for g, group in enumerate(groups) for d in range(num_devices) if group >> d & 1}
    pairs = list(combinations(range(num_devices), 2))
    singles = [(device,) for device in range(num_devices)]
    for devices in [*singles, *(pairs if num_devices <= _PAIR_DEVICES else [])]:
        for target in range(len(groups) + 1):
            if any(home[device] == target for device in devices):
                continue
            moved = [*groups, 0]
            for device in devices:
                moved[home[device]] &= ~(1 << device)
                moved[target] |= 1 << device
            yield [moved[0], *(group for group in moved[1:] if group)]
    for one, other in pairs:
        if home[one] != home[other]:
            both = (1 << one) | (1 << other)
            swapped = list(groups)
            swapped[home[one]] ^= both
            swapped[home[other]] ^= both
            yield swapped

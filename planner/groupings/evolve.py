"""The genetic algorithm of the paper (section 1.7 of its description), built on DEAP.

The paper leaves selection and crossover open; `Operators` has ours, and
``benchmarks/ga_operators.py`` compares them with others. The first individuals are cheap
constructions and the running plan; a local search over the best follows when the objective
says so.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Final

from deap import base, tools

from planner.groupings.beginnings import beginnings
from planner.groupings.chromosomes import (
    MUTATION_PROBABILITY,
    Cross,
    Individual,
    edges,
    mutate,
    no_crossover,
    of_groups,
    random_individual,
    whole_groups,
)
from planner.groupings.climb import climb_by_score, climb_by_worth
from planner.groupings.search import NOTHING, Groupings, GroupTable, Solution
from planner.groupings.worth import Worth
from planner.model import Roles
from planner.roles import Score

Select = Callable[[list[Individual], int], list[Individual]]
"""So many parents, drawn with repetition, the fitter ones more often."""

# What the genetic algorithm, and what the local search by prices, may cost for each device of
# the fog, in the unit of `Worth.effort`. Fogs of up to 8 devices never get there.
_EFFORT: Final = 400
_CLIMB_EFFORT: Final = 800
# The local search by prices begins at so many elites.
_NUM_CLIMBED: Final = 2
# The local search by scores looks at no more new groupings than this.
_CLIMB_GROUPINGS: Final = 1000
# Up to so many devices every elite is climbed from by scores; beyond, the best alone.
_SMALL_FOG: Final = 16


class _Fitness(base.Fitness):  # type: ignore[misc]  # DEAP ships no types
    weights = (-1.0,) * len(Score._fields)


class _Rate(base.Fitness):  # type: ignore[misc]
    weights = (1.0,)


def _ranked(individuals: list[Individual], number: int) -> list[Individual]:
    """Draw by linear rank: the best weighs as much as there are individuals, the last 1."""
    by_rank = sorted(individuals, key=lambda individual: individual.fitness)
    return random.choices(by_rank, range(1, len(by_rank) + 1), k=number)


def _deap(cross: Callable[[list[int], list[int]], object]) -> Cross:
    """Return a crossover of orders as DEAP has it, with the sizes of either parent."""

    def crossed(one: Individual, other: Individual, rng: random.Random) -> Individual:
        first, second = list(one.order), list(other.order)
        if len(first) > 1:
            cross(first, second)
        return Individual(first, rng.choice((one, other)).sizes)

    return crossed


SELECTIONS: Final[dict[str, Select]] = {
    "tournament of 2": partial(tools.selTournament, tournsize=2),
    "tournament of 3": partial(tools.selTournament, tournsize=3),
    "tournament of 5": partial(tools.selTournament, tournsize=5),
    "tournament of 8": partial(tools.selTournament, tournsize=8),
    "roulette": partial(tools.selRoulette, fit_attr="rate"),
    "universal sampling": partial(tools.selStochasticUniversalSampling, fit_attr="rate"),
    "rank": _ranked,
}
CROSSOVERS: Final[dict[str, Cross]] = {
    "ordered": _deap(tools.cxOrdered),
    "partially matched": _deap(tools.cxPartialyMatched),
    "uniform partially matched": _deap(partial(tools.cxUniformPartialyMatched, indpb=0.3)),
    "edges": edges,
    "whole groups": whole_groups,
    "none": no_crossover,
}


@dataclass(frozen=True, slots=True)
class Operators:
    """What the paper leaves open, by the names of `SELECTIONS` and `CROSSOVERS`.

    Attributes:
        constructs: Whether cheap constructions are among the first individuals.
    """

    selection: str = "tournament of 3"
    crossover: str = "whole groups"
    constructs: bool = True


def evolve(
    fog: GroupTable,
    roles: Roles,
    seed: int,
    groupings: Groupings | None = None,
    start: Iterable[Sequence[Sequence[int]]] = (),
    operators: Operators = Operators(),
    max_groupings: int | None = None,
    effort: float = 1.0,
    most: float = inf,
) -> Solution:
    """Return the best grouping that the genetic algorithm finds.

    Args:
        fog: Devices, model, workload and objective.
        roles: Which roles a grouping may use.
        seed: Equal seeds give equal results.
        groupings: Scores to share with another search.
        start: Groupings (replicas as lists of device indexes) to begin with, as that of the
            running plan.
        operators: Selection, crossover and how it begins.
        max_groupings: New groupings after which no generation begins, however dear they are
            to evaluate; None for the usual limit.
        effort: The part of the usual limits that may be spent; less where it begins from
            something good.
        most: Requests per second that no plan exceeds, where a bound is known.
    """
    # An empty `Groupings` is false, so `or` would lose what is to be shared.
    shared = Groupings(fog, roles) if groupings is None else groupings
    given = [[sum(1 << d for d in group) for group in groups] for groups in start]
    # DEAP draws from the global generator: seeded here and given back as it was.
    state = random.getstate()
    random.seed(seed)
    try:
        run = _Evolution(fog, shared, operators, random.Random(seed), effort, most)
        return run.found(given, len(shared) + max_groupings if max_groupings else None)
    finally:
        random.setstate(state)


class _Evolution:
    """One run."""

    def __init__(
        self,
        fog: GroupTable,
        groupings: Groupings,
        operators: Operators,
        rng: random.Random,
        effort: float,
        most: float,
    ) -> None:
        self.fog = fog
        self.objective = fog.objective
        self.num_devices = fog.num_devices
        self.groupings = groupings
        self.operators = operators
        self.select = SELECTIONS[operators.selection]
        self.cross = CROSSOVERS[operators.crossover]
        self.rng = rng
        self.effort = effort
        self.worth = Worth(fog, groupings.rival, most)
        self.elites: dict[tuple[int, ...], Individual] = {}

    def found(self, given: Sequence[Sequence[int]], until: int | None) -> Solution:
        """Evolve from the given groupings, and climb from what came out."""
        if not self.num_devices:
            return NOTHING
        max_effort = inf if until else self.effort * _EFFORT * self.num_devices
        population = self._first(given)
        self._score(population)
        for _ in range(self.objective.generations):
            best = self._best(population)
            if self.worth.effort > max_effort or (until and len(self.groupings) >= until):
                break
            population = self._next(population, best)
            self._score(population)
        best = self._best(population)
        if self.objective.local_search:
            solution = self._climbed(best)
        else:
            solution = self._solution(best[0].groups())
        return Solution(solution.score, solution.members, len(self.groupings))

    def _first(self, given: Sequence[Sequence[int]]) -> list[Individual]:
        begun = [*given]
        if self.operators.constructs:
            begun += beginnings(self.fog, self.worth, self.rng)
        population = [of_groups(groups, self.num_devices) for groups in begun]
        while len(population) < self.objective.population:
            population.append(random_individual(self.num_devices, self.rng))
        return population

    def _score(self, individuals: Iterable[Individual]) -> None:
        for individual in individuals:
            score = self._solution(individual.groups()).score
            individual.fitness = _Fitness(score)
            individual.rate = _Rate((1 / score.objective_seconds,))

    def _solution(self, groups: Sequence[int]) -> Solution:
        """Return the best use of a grouping, with or without the groups that only do harm."""
        good = self.worth.good_groups(groups)
        found = self.groupings.solution(groups)
        if not 0 < len(good) < len(groups):
            return found
        return min(found, self.groupings.solution(good), key=_by_score)

    def _best(self, population: Iterable[Individual]) -> list[Individual]:
        """Return the best ever seen, and remember them."""
        for individual in population:
            self.elites.setdefault(individual.key(), individual)
        best = sorted(self.elites.values(), key=_order)[: self.objective.elites]
        self.elites = {individual.key(): individual for individual in best}
        return best

    def _next(self, population: list[Individual], best: list[Individual]) -> list[Individual]:
        parents = self.select(population + best, self.objective.population)
        children: list[Individual] = []
        for index, parent in enumerate(parents):
            # Each elite is crossed with the population in turn.
            other = best[index % len(best)] if index % 2 else parents[index - 1]
            child = self.cross(other, parent, self.rng)
            if self.rng.random() < MUTATION_PROBABILITY:
                mutate(child, self.rng)
            children.append(child)
        return self._without_twins(children)

    def _without_twins(self, children: Iterable[Individual]) -> list[Individual]:
        """Change individuals that mean a grouping already there: new blood keeps it looking."""
        seen: set[tuple[int, ...]] = set()
        population = []
        for child in children:
            fresh = child
            if fresh.key() in seen:
                mutate(fresh, self.rng)
            if fresh.key() in seen:
                fresh = random_individual(self.num_devices, self.rng)
            seen.add(fresh.key())
            population.append(fresh)
        return population

    def _climbed(self, best: Sequence[Individual]) -> Solution:
        """Return the best of what the elites, and what is near them, are worth."""
        ends: set[tuple[int, ...]] = set()
        share = int(self.effort * _CLIMB_EFFORT * self.num_devices) // _NUM_CLIMBED
        for elite in best[:_NUM_CLIMBED]:
            groups = climb_by_worth(self.worth, elite.groups(), self.num_devices, self.rng, share)
            ends |= {elite.key(), tuple(sorted(groups))}
        found = sorted((self._solution(end) for end in ends), key=_by_score)
        allowed = int(self.effort * _CLIMB_GROUPINGS)
        for start in found[: len(best) if self.num_devices <= _SMALL_FOG else 1]:
            groups = [sum(1 << d for d in member.performance.devices) for member in start.members]
            before = len(self.groupings)
            found.append(climb_by_score(groups, self.num_devices, self.groupings, allowed))
            allowed -= len(self.groupings) - before
        return min(found, key=_by_score)


def _order(individual: Individual) -> tuple[Any, ...]:
    return (tuple(-value for value in individual.fitness.wvalues), individual.key())


def _by_score(solution: Solution) -> tuple[Score, tuple[tuple[int, ...], ...]]:
    return solution.score, tuple(member.performance.devices for member in solution.members)

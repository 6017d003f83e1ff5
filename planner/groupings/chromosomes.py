"""The two chromosomes of the paper (section 1.7 of its description), and what changes them.

An order of the devices, and sizes whose slices of that order are the replicas. Ours adds a
first size, which may be 0: the devices of that slice are left idle.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from planner.masks import members_of

# The paper's mix: mutate 30 % of the children, and of these 20 % by a swap in the order,
# 50 % by new sizes from a random point on, 15 % by all sizes new, 15 % by both new.
MUTATION_PROBABILITY: Final = 0.3
MUTATION_MIX: Final = (0.20, 0.50, 0.15, 0.15)


class Individual:
    """An order of devices, and ``sizes[0]`` idle ones before the sizes of the replicas.

    Attributes:
        fitness: The score, for DEAP.
        rate: Requests per second, for selection in proportion to them.
    """

    def __init__(self, order: Sequence[int], sizes: Sequence[int]) -> None:
        self.order = list(order)
        self.sizes = list(sizes)
        self.fitness: Any = None
        self.rate: Any = None

    def slices(self) -> list[list[int]]:
        """Return the idle devices, then the devices of each replica."""
        found, start = [], 0
        for size in self.sizes:
            found.append(self.order[start : start + size])
            start += size
        return found

    def groups(self) -> list[int]:
        """Return the replicas as bit masks."""
        return [sum([1 << device for device in group]) for group in self.slices()[1:]]

    def key(self) -> tuple[int, ...]:
        """Return the grouping, whatever the orders within and between its groups."""
        return tuple(sorted(self.groups()))


def of_groups(groups: Iterable[int], num_devices: int) -> Individual:
    """Return the individual that means these groups (bit masks)."""
    members = [members_of(group) for group in groups]
    used = [device for group in members for device in group]
    idle = sorted(set(range(num_devices)).difference(used))
    return Individual([*idle, *used], [len(idle), *(len(group) for group in members)])


def random_individual(num_devices: int, rng: random.Random) -> Individual:
    """Return a random order with random sizes."""
    order = rng.sample(range(num_devices), num_devices)
    return Individual(order, _random_sizes(num_devices, rng))


def _random_sizes(num_devices: int, rng: random.Random) -> list[int]:
    # Half of the individuals leave nobody idle.
    idle = rng.choice((0, rng.randint(0, num_devices - 1)))
    return [idle, *_random_parts(num_devices - idle, num_devices, rng)]


def _random_parts(total: int, num_devices: int, rng: random.Random) -> list[int]:
    """Return sizes that add up to ``total``.

    Their largest is drawn first, small ones as often as large ones: in a large fog groups of
    a few devices are usual, and sizes up to the whole fog would be nearly always too large.
    """
    largest = round(num_devices ** rng.random())
    parts = []
    while total:
        parts.append(rng.randint(1, min(total, largest)))
        total -= parts[-1]
    rng.shuffle(parts)
    return parts


def mutate(individual: Individual, rng: random.Random) -> None:
    """Change an individual in one of the paper's four ways."""
    (kind,) = rng.choices(("swap", "tail", "sizes", "both"), MUTATION_MIX)
    num_devices = len(individual.order)
    if kind == "swap" and num_devices > 1:
        i, j = rng.sample(range(num_devices), 2)
        individual.order[i], individual.order[j] = individual.order[j], individual.order[i]
    elif kind == "tail":
        point = rng.randint(1, len(individual.sizes))
        kept = individual.sizes[:point]
        rest = num_devices - sum(kept)
        individual.sizes = [*kept, *_random_parts(rest, num_devices, rng)]
    if kind in ("sizes", "both"):
        individual.sizes = _random_sizes(num_devices, rng)
    if kind == "both":
        rng.shuffle(individual.order)


# --- crossover ------------------------------------------------------------------------------

Cross = Callable[[Individual, Individual, random.Random], Individual]
"""A child of two parents: the orders are crossed, the sizes are those of one, as in the paper."""


def whole_groups(one: Individual, other: Individual, rng: random.Random) -> Individual:
    """Keep some replicas of one parent; all other places get their devices as in the other.

    An ordered crossover whose cuts lie between replicas, so that what is kept means the same
    in the child.
    """
    keeper, giver = (one, other) if rng.random() < 0.5 else (other, one)
    kept = [rng.random() < 0.5 for _ in keeper.sizes]
    slices = keeper.slices()
    staying = {d for keeps, group in zip(kept, slices, strict=True) if keeps for d in group}
    moving = iter([device for device in giver.order if device not in staying])
    order = [
        device if keeps else next(moving)
        for keeps, group in zip(kept, slices, strict=True)
        for device in group
    ]
    return Individual(order, keeper.sizes)


def edges(one: Individual, other: Individual, rng: random.Random) -> Individual:
    """Walk along the neighbourhoods of both orders (edge recombination).

    The next device is a neighbour of the last one, the one with the fewest neighbours left;
    any device when there is none.
    """
    near: dict[int, set[int]] = {device: set() for device in one.order}
    for order in (one.order, other.order):
        for index, device in enumerate(order):
            near[device].update((order[index - 1], order[(index + 1) % len(order)]))
            near[device].discard(device)
    at = rng.choice((one, other)).order[0]
    left, order = set(one.order), [at]
    left.discard(at)
    while left:
        reachable = [device for device in near[at] if device in left]
        if reachable:
            fewest = min(len(near[device] & left) for device in reachable)
            closest = sorted(d for d in reachable if len(near[d] & left) == fewest)
            at = rng.choice(closest)
        else:
            at = rng.choice(sorted(left))
        order.append(at)
        left.discard(at)
    return Individual(order, rng.choice((one, other)).sizes)


def no_crossover(one: Individual, other: Individual, rng: random.Random) -> Individual:
    """Copy one of the parents."""
    parent = rng.choice((one, other))
    return Individual(parent.order, parent.sizes)

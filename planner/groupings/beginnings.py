"""Groupings to begin a search with: cheap to make, and better than chance. Pure."""

from __future__ import annotations

import random
from typing import Final

from planner.groupings.search import GroupTable
from planner.groupings.worth import Worth
from planner.masks import members_of

# A growing group chooses among so many devices.
_WIDTH: Final = 12
# What a prompt costs beside an answer; nobody knows the right price yet.
_PRICES: Final = (0.5, 0.3, 0.7)


def beginnings(table: GroupTable, worth: Worth, rng: random.Random) -> list[list[int]]:
    """Return a few groupings: one pipeline over all devices, and grown groups."""
    everyone = (1 << table.num_devices) - 1
    found = [[everyone]] if worth.holds_model(everyone) else []
    return [*found, *(grown_groups(table, worth, price, rng) for price in _PRICES)]


def grown_groups(table: GroupTable, worth: Worth, price: float, rng: random.Random) -> list[int]:
    """Return groups that were grown one after the other.

    Each begins with a device that has much memory, and takes the device with which it earns
    most for what its members could earn at best, until another one would make that worse.
    """
    yields = [_most(table, device, price) for device in range(table.num_devices)]
    memory = [cost.memory_bytes + cost.host_memory_bytes for cost in table.costs]
    left = set(range(table.num_devices))

    def efficiency(group: int) -> float:
        at_best = sum(yields[device] for device in members_of(group))
        return worth.rates(group).at(price) / max(at_best, 1e-12)

    groups = []
    for device in sorted(left, key=lambda d: (-memory[d] * rng.uniform(0.5, 1.0), d)):
        if device not in left:
            continue
        left.discard(device)
        group, so_far = 1 << device, efficiency(1 << device)
        while left:
            offered = rng.sample(sorted(left), min(_WIDTH, len(left)))
            best = max(offered, key=lambda d: (efficiency(group | 1 << d), memory[d], -d))
            more = efficiency(group | 1 << best)
            if so_far and more <= so_far:
                break
            group, so_far = group | 1 << best, more
            left.discard(best)
        groups.append(group)
    return groups


def _most(table: GroupTable, device: int, price: float) -> float:
    """Return what a device earns at most, as a part of any group."""
    cost, work = table.costs[device], table.workload
    prompts = 1 / max(sum(cost.prefill.layers), 1e-12)
    tokens = max(
        rows / max(sum(phase.layers), 1e-12) for rows, phase in enumerate(cost.decode, start=1)
    )
    return max(price * prompts, (1 - price) * tokens / work.answer_tokens)

"""Roles of many replicas: thresholds on PS/DS, and repair. Pure.

Requests per second of each phase are sums over replicas, so a choice of roles is judged by
two numbers, and a change of one role by two additions. What comes out is compared by the
whole objective in `planner.roles`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from broker.plan import Role

# Thresholds that are repaired: those with the best sums.
_NUM_KEPT: Final = 3
# With more replicas than this the sums are so even that exchanging two gains nothing.
_MAX_EXCHANGED: Final = 40


def promising_roles(
    prompts: Sequence[float], answers: Sequence[float], with_both: bool
) -> Iterator[tuple[Role, ...]]:
    """Yield a few choices of roles that serve most requests per second, or nearly so.

    Args:
        prompts: [R], requests per second of each replica's prefill.
        answers: [R], of its decode.
        with_both: Whether replicas may do both. Then the one at the threshold does, which is
            optimal when a replica's rates do not depend on its role (a fractional knapsack).
    """
    order = sorted(range(len(prompts)), key=lambda r: (-prompts[r] / max(answers[r], 1e-12), r))
    prefilled = [0.0, *accumulate(prompts[r] for r in order)]
    total = sum(answers)
    decoded = [total, *(total - done for done in accumulate(answers[r] for r in order))]
    by_sums = sorted(range(len(order) + 1), key=lambda k: (-min(prefilled[k], decoded[k]), k))
    for num_prefill in by_sums[:_NUM_KEPT]:
        chosen = set(order[:num_prefill])
        if with_both:
            for border in order[max(num_prefill - 1, 0) : num_prefill + 1]:
                yield tuple(
                    Role.BOTH if r == border else _role(r in chosen) for r in range(len(order))
                )
        repaired = _repaired(chosen, prompts, answers)
        yield tuple(_role(r in repaired) for r in range(len(order)))


def _role(is_prefill: bool) -> Role:
    return Role.PREFILL if is_prefill else Role.DECODE


def _repaired(chosen: set[int], prompts: Sequence[float], answers: Sequence[float]) -> set[int]:
    """Change the role of one replica, or exchange those of two, while that helps."""
    replicas = range(len(prompts))
    prefilled = sum(prompts[r] for r in chosen)
    decoded = sum(answers[r] for r in replicas if r not in chosen)
    while True:
        changes: list[tuple[float, float, tuple[int, ...]]] = [
            (prefilled - prompts[r], decoded + answers[r], (r,))
            if r in chosen
            else (prefilled + prompts[r], decoded - answers[r], (r,))
            for r in replicas
        ]
        if len(prompts) <= _MAX_EXCHANGED:
            changes += [
                (
                    prefilled - prompts[out] + prompts[into],
                    decoded + answers[out] - answers[into],
                    (out, into),
                )
                for out in chosen
                for into in replicas
                if into not in chosen
            ]
        best = max(changes, key=lambda change: (min(change[:2]), change[2]))
        if min(best[:2]) <= min(prefilled, decoded) * (1 + 1e-12):
            return chosen
        prefilled, decoded = best[:2]
        chosen = chosen.symmetric_difference(best[2])

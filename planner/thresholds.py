"""Roles of many replicas: two sums that are to be large and even. Pure.

Requests per second of each phase are sums over replicas, so a choice of roles is judged by
two numbers. The best choice is a balance problem: changes of one or two roles can end where
only changing many helps, with ten unequal replicas up to a third below the best. So all sums
of prompts are walked in steps, and for each the most answers beside it are known (the dynamic
program of a knapsack). Steps round, so the choices are repaired by exact sums, and compared
by the whole objective in `planner.roles`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.plan import Role

Floats = NDArray[np.float64]

# Steps between no prompts and a little more than can be of use.
_NUM_STEPS: Final = 2048
_BEYOND: Final = 1.1
# Choices that are kept: those with the best sums.
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
        with_both: Whether replicas may do both. Then the one at a threshold on
            prompts/answers does, which is optimal when a replica's rates do not depend on its
            role (a fractional knapsack).
    """
    replicas = range(len(prompts))
    order = sorted(replicas, key=lambda r: (-prompts[r] / max(answers[r], 1e-12), r))
    prefilled = [0.0, *accumulate(prompts[r] for r in order)]
    total = sum(answers)
    decoded = [total, *(total - done for done in accumulate(answers[r] for r in order))]
    by_sums = sorted(range(len(order) + 1), key=lambda k: (-min(prefilled[k], decoded[k]), k))
    if with_both:
        for num_prefill in by_sums[:_NUM_KEPT]:
            chosen = set(order[:num_prefill])
            for border in order[max(num_prefill - 1, 0) : num_prefill + 1]:
                yield tuple(Role.BOTH if r == border else _role(r in chosen) for r in replicas)
    # Between the two numbers that the next threshold exchanges lies what time-sharing reaches.
    most = max(
        min(max(prefilled[k], prefilled[k + 1]), max(decoded[k], decoded[k + 1]))
        for k in range(len(order))
    )
    starts = [set(order[: by_sums[0]]), *_balanced(prompts, answers, most * _BEYOND)]
    for start in starts:
        repaired = _repaired(start, prompts, answers)
        yield tuple(_role(r in repaired) for r in replicas)


def _balanced(
    prompts: Sequence[float], answers: Sequence[float], enough: float
) -> Iterator[set[int]]:
    """Yield who prefills in the choices with the best sums, prompts in steps up to ``enough``."""
    step = max(enough, 1e-12) / (_NUM_STEPS - 1)
    moves = [min(round(rate / step), _NUM_STEPS - 1) for rate in prompts]
    # The most answers beside each number of steps; the last one stands for all beyond it.
    most = np.full(_NUM_STEPS, -np.inf)
    most[0] = 0.0
    walked = []
    for move, rate in zip(moves, answers, strict=True):
        prefilling = _moved(most, move)
        # Who decodes nothing prefills.
        walked.append((most, prefilling >= most + rate))
        most = np.maximum(most + rate, prefilling)
    sums = np.minimum(np.arange(_NUM_STEPS) * step, most)
    for end in np.argsort(-sums, kind="stable")[:_NUM_KEPT]:
        at, chosen = int(end), set()
        for r in reversed(range(len(prompts))):
            before, prefills = walked[r]
            if prefills[at]:
                chosen.add(r)
                first = at - moves[r]
                beyond = at == _NUM_STEPS - 1
                at = first + int(np.argmax(before[first:])) if beyond else first
        yield chosen


def _moved(most: Floats, move: int) -> Floats:
    """Return the most answers when prompts are so many steps more."""
    moved = np.full(_NUM_STEPS, -np.inf)
    moved[move:] = most[: _NUM_STEPS - move]
    moved[-1] = most[_NUM_STEPS - 1 - move :].max()
    return moved


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

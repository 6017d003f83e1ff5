"""A bound on the requests per second of any plan, device by device. Pure.

Looser than that of `planner.bounds.group_bound`, which starts from it, and computed at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.flow import balanced_rate
from planner.replicas import Fog


def device_bound(fog: Fog) -> float:
    """Return requests per second that no plan of the fog exceeds.

    Forget memory, links, embedding, head and the ends of pipelines, and let every device
    give any part of its time to any layer and phase: each step only adds plans. What is left
    is a linear program in the parts of each device's time, solved by `balanced_rate`.
    """
    return balanced_rate(0.0, 0.0, device_rates(fog))


def device_rates(fog: Fog) -> list[tuple[float, float]]:
    """Return [N] (prompts, answers) per second that each device gives at most.

    A layer's work is counted in its mean time over the devices, and a device is credited
    with its best layer per unit of work, so the bound also holds where devices differ in
    which layers suit them; with equal blocks nothing is lost by that. In decode a device is
    credited with its best batch: a stage that runs ``c`` layers on ``r`` rows in
    ``t(r) >= c * layer(r)`` seconds passes at most ``r / (c * layer(r))`` tokens per second.
    """
    costs, work = fog.costs, fog.workload
    if not costs:
        return []
    prefills = [cost.prefill.layers for cost in costs]
    decodes = [
        [
            min(phase.layers[layer] / rows for rows, phase in enumerate(cost.decode, start=1))
            for layer in range(fog.model.num_layers)
        ]
        for cost in costs
    ]
    prompts = _models_per_second(prefills)
    tokens = _models_per_second(decodes)
    return [(p, t / work.answer_tokens) for p, t in zip(prompts, tokens, strict=True)]


def _models_per_second(seconds: Sequence[Sequence[float]]) -> list[float]:
    """Return how often per second each device at best does the work of all layers."""
    weights = [max(sum(column) / len(seconds), 1e-12) for column in zip(*seconds, strict=True)]
    whole = sum(weights)
    return [
        1 / max(min(s / w for s, w in zip(row, weights, strict=True)) * whole, 1e-12)
        for row in seconds
    ]

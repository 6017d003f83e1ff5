"""The least time that a group's links take for a request's KV cache, over all its splits. Pure.

A stage's KV cache is in proportion to its layers, and all stages but one carry hidden states
as well. Through one broker the busiest link decides, so the least of it is a question of how
layers are dealt out, not of which or in which order. Lower limits, not the exact least: layers
with the smallest cache count for those of each device, and only what memory allows at best.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

from planner.replicas import Fog

_ROUNDING: Final = 1e-9


def least_send_seconds(fog: Fog, members: Sequence[int]) -> float:
    """Return what the busiest uplink works for a prompt at least; 0 where devices have ways."""
    tokens = fog.workload.prompt_tokens
    return _least_seconds(fog, members, tokens, tokens)


def least_receive_seconds(fog: Fog, members: Sequence[int]) -> float:
    """Return what the busiest downlink works for a request at least; 0 with direct ways."""
    work = fog.workload
    return _least_seconds(fog, members, work.prompt_tokens, work.answer_tokens)


def _least_seconds(fog: Fog, members: Sequence[int], kv_tokens: int, row_tokens: int) -> float:
    """Return the least busiest link where all but one of the stages pass on hidden states."""
    costs, model = [fog.costs[d] for d in members], fog.model
    if any(cost.peers for cost in fog.costs):
        return 0.0
    rates = [cost.bytes_per_second for cost in costs]
    row_bytes = row_tokens * model.activation_bytes
    kv_bytes = [kv_tokens * each for each in model.sent_kv_bytes]
    # The mean over the links, each weighted by its rate, is below the busiest.
    low = (sum(kv_bytes) + (len(members) - 1) * row_bytes) / sum(rates)
    smallest = min(kv_bytes)
    if not smallest:
        return low
    deals = [
        _Link(smallest / rate, row_bytes / rate, _most_layers(fog, device))
        for device, rate in zip(members, rates, strict=True)
    ]
    if _holds(deals, low, model.num_layers):
        return low
    # What a link carries of whole layers, with hidden states or without: one of these is it.
    times = sorted(
        start + count * link.layer
        for link in deals
        for start in (0.0, link.rows)
        for count in range(1, link.most + 1)
        if start + count * link.layer > low
    )
    index = bisect_left(times, True, key=lambda time: _holds(deals, time, model.num_layers))
    return times[index] * (1 - _ROUNDING) if index < len(times) else low


class _Link(NamedTuple):
    """Seconds for one layer's KV cache and for hidden states, and layers at most."""

    layer: float
    rows: float
    most: int


def _holds(links: Sequence[_Link], busiest: float, num_layers: int) -> bool:
    """Whether layers can be dealt out so that no link works for longer."""
    held, gain, empty = 0, 0, 0
    for link in links:
        alone = min(int(busiest / link.layer + _ROUNDING), link.most)
        if not alone:
            return False
        count = max(min(int((busiest - link.rows) / link.layer + _ROUNDING), link.most), 0)
        held += count
        # One stage has no hidden states to carry. One that could hold nothing must be it.
        if count:
            gain = gain if empty else max(gain, alone - count)
        else:
            empty, gain = empty + 1, alone
    return empty <= 1 and held + gain >= num_layers


def _most_layers(fog: Fog, device: int) -> int:
    """Return how many layers a device holds at most, embedding and head elsewhere."""
    cost, model = fog.costs[device], fog.model
    smallest = min(
        weights + fog.context_tokens * kv
        for weights, kv in zip(model.block_bytes, model.kv_bytes, strict=True)
    )
    room = cost.memory_bytes + cost.host_memory_bytes
    return min(room // max(smallest, 1), model.num_layers)

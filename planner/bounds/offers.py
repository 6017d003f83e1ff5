"""The ways to run a group of devices, and how fast they can be at most. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple

import numpy as np

from planner.bounds.stage_tables import (
    FIRST,
    LAST,
    Carried,
    Floats,
    Ints,
    StageTables,
    stage_tables,
)
from planner.cost import DeviceCost
from planner.promises import groupings
from planner.replicas import Fog

# Splits accept what exceeds a limit by 1e-9 of it, which is rounding; this is more.
_SLACK: Final = 1 + 1e-7


class Among(NamedTuple):
    """The plans among which a bound is sought.

    Attributes:
        is_separate: Only those in which no replica does both: every KV cache leaves the
            replica that computed it and enters another, over the links of both.
        keeps_min_tps: Only those in which every replica that decodes gives at least one
            request ``min_tps``.
    """

    is_separate: bool = False
    keeps_min_tps: bool = False

    def counts_links(self, fog: Fog) -> bool:
        """Whether KV caches limit what such a plan serves, and each replica by itself.

        Where devices have direct ways, the links in use depend on both replicas.
        """
        return (
            self.is_separate
            and fog.objective.counts_kv
            and not any(cost.peers for cost in fog.costs)
        )


ALL_PLANS: Final = Among()


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """One way to run a group of two or more: it serves ``gain / step`` requests per second.

    A step lasts at least ``laps`` times the slowest stage, and as long as each link is busy;
    in decode also as long as all stages and hops together. Where KV caches count, requests
    come no faster than links carry them, and ``step`` is the time between steps.

    Attributes:
        rows: Of each of ``laps`` groups in flight; None for prefill.
        gain: Requests that a step brings nearer to their end, in whole requests.
        link_seconds: [N], how long a step keeps the link of each kind of device busy.
        hop_seconds: [N], least share of each kind of device in the hops.
        limit: Longest step that is allowed, pauses for links left out; infinite when any is.
    """

    tables: StageTables
    rows: int | None
    laps: int
    gain: float
    link_seconds: Floats
    hop_seconds: Floats
    limit: float

    @property
    def is_prefill(self) -> bool:
        """Whether the requests are prompts; else they are answers."""
        return self.rows is None

    def paces(self) -> tuple[float, float]:
        """Return a step that no group goes below, and the limit.

        Without a limit, the second is one beyond which stages gain nothing: they hold all
        that they can.
        """
        finite = self.tables.seconds[np.isfinite(self.tables.seconds)]
        if not finite.size:
            return inf, inf
        shortest = max(self.laps * float(finite.min()), 1e-9)
        longest = self.limit
        if longest == inf:
            longest = max(self.laps * float(finite.max()), float(self.link_seconds.max()))
            longest = max(longest, 2 * shortest)
        links = self.tables.link_seconds
        if links is not None:
            longest = max(longest, self.gain * float(links[np.isfinite(links)].max()))
        return shortest, longest

    def most_units(self, steps: Floats) -> Ints:
        """Return [N, 3, K], the units that each kind of device does in each of [K] steps."""
        allowed = np.minimum(steps, self.limit)
        most = self.tables.units_within(allowed / self.laps * _SLACK)
        linked = self.tables.linked_units_within(steps / self.gain * _SLACK)
        if linked is not None:
            most = np.minimum(most, linked)
        busy = self.link_seconds[:, None] > allowed * _SLACK
        return np.where(busy[:, None, :], 0, most)


def offers(fog: Fog, devices: Sequence[int], among: Among = ALL_PLANS) -> list[Offer]:
    """Return every way to run a group, less those that another is as good as.

    Args:
        fog: A model of two layers at least.
        devices: Index of one device of each kind.
        among: Only what these plans may use.
    """
    costs = [fog.costs[device] for device in devices]
    work = fog.workload
    hops, links = _hops_and_links(fog.costs, devices)
    leaving = arriving = None
    if among.counts_links(fog):
        leaving = Carried(work.prompt_tokens, work.prompt_tokens, LAST)
        arriving = Carried(work.prompt_tokens, work.answer_tokens, FIRST)
    prompts = Offer(
        stage_tables(costs, fog.model, None, fog.context_tokens, leaving),
        None,
        1,
        1.0,
        links * work.prompt_tokens,
        np.zeros(len(devices)),
        inf,
    )
    answers = [
        Offer(
            tables,
            rows,
            laps,
            slots / work.answer_tokens,
            links * (rows * laps),
            hops,
            # One request at a time is served however slow it is, where that is a plan.
            inf if slots == 1 and not among.keeps_min_tps else _SLACK / work.min_tps,
        )
        for slots, laps, rows, tables in _groupings(fog, costs, arriving)
    ]
    return [prompts, *answers]


def _groupings(
    fog: Fog, costs: Sequence[DeviceCost], carried: Carried | None
) -> Iterator[tuple[int, int, int, StageTables]]:
    """Yield slots, groups in flight, rows of the largest and the tables of its stages.

    Fewer slots in the same groups are of use only where more do not fit in memory.
    """
    num_stages = min(fog.num_devices, fog.model.num_layers)
    larger: dict[tuple[int, int], StageTables] = {}
    tables: dict[tuple[int, int], StageTables] = {}
    for slots in range(fog.objective.max_slots, 0, -1):
        kv_tokens = max(fog.context_tokens, slots * fog.request_tokens)
        for laps, rows in groupings(slots, num_stages):
            found = tables.get((rows, kv_tokens))
            if found is None:
                found = tables[rows, kv_tokens] = stage_tables(
                    costs, fog.model, rows, kv_tokens, carried
                )
            known = larger.get((laps, rows))
            if known is None or not np.array_equal(known.seconds, found.seconds):
                larger[laps, rows] = found
                yield slots, laps, rows, found


def _hops_and_links(costs: Sequence[DeviceCost], devices: Sequence[int]) -> tuple[Floats, Floats]:
    """Return the least seconds of each device's part in the hops of a ring, and of its link.

    A hop over the broker is the sum of what its two ends take; half of a direct one is
    counted at each end. Both per position.
    """
    hops, links = [], []
    for device in devices:
        cost = costs[device]
        away = list(cost.peers.values())
        back = [way for other in costs if (way := other.peers.get(cost.id)) is not None]
        ends = cost.latency_seconds + cost.row_seconds
        hops.append(
            sum(
                min([ends, *[(way.latency_seconds + way.row_seconds) / 2 for way in ways]])
                for ways in (away, back)
            )
        )
        links.append(
            max(
                min([cost.row_seconds, *[way.row_seconds for way in ways]]) for ways in (away, back)
            )
        )
    return np.array(hops), np.array(links)

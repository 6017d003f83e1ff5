"""The best single device as what every plan has to stand beside. Pure.

A plan for most requests at full load may give a fast device's work to slow ones and gain
little by it, while each request takes many times as long: nobody would accept that. So a
plan is *behind* when it serves fewer requests than the best device alone, or answers later
(decision 0013).
"""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple

SLOWEST: Final = 2.0
"""A lone request may take so many times the device's time on the slowest of a plan's replicas."""
_ROUNDING: Final = 1e-6


class Times(NamedTuple):
    """What a plan, or a device alone, is judged by; seconds.

    Attributes:
        num_slow: Decoding replicas that give not even one request ``min_tps``.
        objective: Per request that counts.
        request: Per request at full load.
        latency: A lone request, mean over the replicas.
        slowest: A lone request, prefilled and decoded by the slowest replica of each phase.
    """

    num_slow: int
    objective: float
    request: float
    latency: float
    slowest: float


class Rival(NamedTuple):
    """The best single device.

    Attributes:
        device: Its id.
        times: Its own.
        load: Requests per second at which answers are compared, as a share of what it serves;
            None: requests per second alone are compared.
    """

    device: str
    times: Times
    load: float | None

    @property
    def longest_seconds(self) -> float:
        """What a lone request may take on the slowest of a plan's replicas."""
        return inf if self.load is None else SLOWEST * self.times.latency

    def leaves_behind(self, plan: Times) -> bool:
        """Whether a plan serves fewer requests than the device, or answers later.

        Answers are compared at the same requests per second by the formula of one queue,
        ``latency / (1 - use)``: a plan that serves twice as much waits less, and may take
        longer for a lone request. A device whose streams are too slow for ``min_tps`` leaves
        no plan behind whose streams are fast enough.
        """
        own = self.times
        if plan.objective > own.objective * (1 + _ROUNDING):
            return True
        if self.load is None or plan.num_slow < own.num_slow:
            return False
        room = 1 - self.load * plan.request / own.request
        return plan.latency * (1 - self.load) > own.latency * room * (
            1 + _ROUNDING
        ) or plan.slowest > self.longest_seconds * (1 + _ROUNDING)

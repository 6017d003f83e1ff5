"""The best single device as what every plan has to stand beside. Pure.

A plan for most requests at full load may give a fast device's work to slow ones and gain
little by it, while each request takes many times as long: nobody would accept that. So a
plan is *behind* when it serves fewer requests than the best device alone, or answers later
(decisions 0013 and 0019).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from typing import Final, NamedTuple

# The part of a lone request's time that prefill may take, where each phase gets its own.
_PREFILL_PART: Final = 0.2
# A plan that serves R times as many requests as the device may take R times as long on its
# slowest replicas, but no more than this times the root of R.
_SLOWEST: Final = 2.0
_ROUNDING: Final = 1e-6
# Between what the device serves and what the plan serves, answers are estimated at so many
# rates.
_NUM_RATES: Final = 4


class Part(NamedTuple):
    """What one replica does of a lone request in one phase, and of how many it can do so.

    Attributes:
        seconds: Of the request.
        rate: Requests per second; of a replica that does both, whole requests.
    """

    seconds: float
    rate: float


class Times(NamedTuple):
    """What a plan, or a device alone, is judged by; seconds.

    Attributes:
        num_slow: Decoding replicas that give not even one request ``min_tps``.
        objective: Per request that counts.
        request: Per request at full load.
        prefills: A lone prompt on each replica that prefills, and what is left then of its KV
            transfer.
        decodes: A lone answer on each replica that decodes.
    """

    num_slow: int
    objective: float
    request: float
    prefills: Sequence[Part]
    decodes: Sequence[Part]

    @property
    def slowest(self) -> float:
        """A lone request, prefilled and decoded by the slowest replica of each phase."""
        return max(self.prefills).seconds + max(self.decodes).seconds

    def latency(self, rate: float) -> float:
        """Return a lone request's time on the fastest replicas that serve ``rate`` together."""
        return _fastest(self.prefills, rate) + _fastest(self.decodes, rate)


def _fastest(parts: Sequence[Part], rate: float) -> float:
    left, total = rate, 0.0
    for part in sorted(parts):
        taken = min(left, part.rate)
        total += taken * part.seconds
        left -= taken
        if left <= 0:
            break
    return total / (rate - left)


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
    def latency(self) -> float:
        """A lone request's time on the device."""
        return self.times.latency(1 / self.times.request)

    def most_times(self, rate: float) -> float:
        """Return how many times as long a lone request may take on a plan's slowest replicas.

        Args:
            rate: Requests per second of the plan; an upper bound of it gives one of the times.
        """
        if self.load is None:
            return inf
        gain = max(rate * self.times.request, 1.0)
        return min(gain, _SLOWEST * sqrt(gain))

    def most_seconds(self, rate: float) -> tuple[float, float]:
        """Return how long prefill, and then an answer, of a lone request may take anywhere.

        Args:
            rate: As of `most_times`.
        """
        longest = self.most_times(rate) * self.latency
        return _PREFILL_PART * longest, (1 - _PREFILL_PART) * longest

    def leaves_behind(self, plan: Times) -> bool:
        """Whether a plan serves fewer requests than the device, or answers later.

        Answers are compared at the same requests per second by the formula of one queue,
        ``latency / (1 - use)``. Requests go to the fastest replicas first, and the fewer
        replicas take them, the busier these are: of a few numbers of replicas the one that
        answers soonest counts, from those that serve no more than the device up to all. A
        device whose streams are too slow for ``min_tps`` leaves no plan behind whose streams
        are fast enough.
        """
        if not self._compares_answers(plan):
            return self._serves_more_than(plan)
        gain = self._gain(plan)
        rates = [gain ** (step / (_NUM_RATES - 1)) for step in range(_NUM_RATES)]
        return all(self._is_late(plan, rate, rate) for rate in rates)

    def must_leave_behind(self, plan: Times) -> bool:
        """Whether it leaves behind every plan that is no better than this in any value."""
        if not self._compares_answers(plan):
            return self._serves_more_than(plan)
        return self._is_late(plan, 1.0, self._gain(plan))

    def _serves_more_than(self, plan: Times) -> bool:
        return plan.objective > self.times.objective * (1 + _ROUNDING)

    def _compares_answers(self, plan: Times) -> bool:
        return (
            self.load is not None
            and plan.num_slow >= self.times.num_slow
            and not self._serves_more_than(plan)
        )

    def _gain(self, plan: Times) -> float:
        return max(self.times.request / plan.request, 1.0)

    def _is_late(self, plan: Times, taking: float, sharing: float) -> bool:
        """Whether the replicas that serve ``taking`` times the device's rate answer later.

        They are as busy as if there were replicas for ``sharing`` times its rate.
        """
        assert self.load is not None, "without a load answers are not compared"
        latest = self.latency * (1 + _ROUNDING)
        if plan.slowest > self.most_times(1 / plan.request) * latest:
            return True
        wait = (1 - self.load / sharing) / (1 - self.load)
        return plan.latency(taking / self.times.request) > latest * wait

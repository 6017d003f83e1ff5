"""What requests look like, as gateways measure it: how long prompts and answers are. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

from broker.control import MeasuredLengths
from planner.live.levels import Level, Rule
from planner.model import Workload

RULE: Final = Rule(threshold=0.5, seconds=30.0)
"""A ratio that is twice as large counts after two minutes, one ten times as large after half."""
HOP_RULE: Final = Rule(threshold=0.25, seconds=10.0)
_LEAST_HOP: Final = 1e-3
"""Hops are compared with this on top: a part of a millisecond changes no plan."""
_NO_OVERHEAD: Final = Level(_LEAST_HOP)


@dataclass(frozen=True, slots=True)
class Demand:
    """Mean lengths of requests as the planner takes them to be.

    Attributes:
        ratio: Prompt over answer tokens, as a level; None before the first measurement.
        lengths: Mean prompt and answer when the ratio last changed; None: as planned.
        hop: What a hop takes beside its links, on top of `_LEAST_HOP`, as a level.
    """

    ratio: Level | None = None
    lengths: tuple[int, int] | None = None
    hop: Level = _NO_OVERHEAD

    @classmethod
    def planned(
        cls, prompt_tokens: int, answer_tokens: int, hop_overhead_seconds: float = 0.0
    ) -> Demand:
        """Return the demand that a plan was made for."""
        return cls(
            Level(prompt_tokens / answer_tokens),
            (prompt_tokens, answer_tokens),
            Level(_LEAST_HOP + hop_overhead_seconds),
        )

    @property
    def hop_overhead_seconds(self) -> float:
        """What every hop is planned to take beside the links of its two devices."""
        return self.hop.value - _LEAST_HOP

    def after_hops(self, measured: Iterable[float], now: float) -> Demand:
        """Return the demand after one more look at what gateways measured of hops."""
        found = list(measured)
        if not found:
            return self
        return replace(self, hop=self.hop.after(_LEAST_HOP + median(found), now, HOP_RULE))

    def after(self, measured: Mapping[str, MeasuredLengths], usual: Workload, now: float) -> Demand:
        """Return the demand after one more look at what gateways measured.

        Args:
            measured: Gateway to its latest measurement; gateways count by their requests.
            usual: What is planned for before anything is measured.
            now: Seconds, never falling.
        """
        requests = sum(lengths.num_requests for lengths in measured.values())
        if not requests:
            return self
        prompt, answer = (
            sum(getattr(m, name) * m.num_requests for m in measured.values()) / requests
            for name in ("prompt_tokens", "answer_tokens")
        )
        known = self.ratio or Level(usual.prompt_tokens / usual.answer_tokens)
        ratio = known.after(prompt / answer, now, RULE)
        if ratio.value == known.value:
            return replace(self, ratio=ratio)
        lengths = max(round(prompt), 1), max(round(answer), 1)
        return replace(self, ratio=ratio, lengths=lengths)

    def workload(self, usual: Workload) -> Workload:
        """Return what is planned for: ``usual``, with the lengths that were measured."""
        if self.lengths is None or usual.buckets:
            # Buckets say more than two means, and a person wrote them.
            return usual
        return replace(usual, prompt_tokens=self.lengths[0], answer_tokens=self.lengths[1])

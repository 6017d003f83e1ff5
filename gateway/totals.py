"""Everything that requests of this gateway experienced since it started, for `/metrics`. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from broker.metrics import Distribution

# OpenTelemetry's advice for each, with buckets behind it for devices that take their time.
TTFT_BOUNDS: Final = (
    *(0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0),
)
TPOT_BOUNDS: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    *(5.0, 10.0),
)
REQUEST_BOUNDS: Final = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    *(163.84, 327.68, 655.36),
)
FINISHED_REASONS: Final = ("stop", "length", "abort", "error")


@dataclass(slots=True)
class Totals:
    """Sums that only grow; times in seconds.

    Attributes:
        ttft: From the submission of a request to its first token.
        tpot: Mean time per token, over up to 32 tokens of a request.
        queue: From its submission to `Open`, of its first attempt.
        latency: From its submission to its end, however it ended.
        prompt_tokens: Of all prompts that were taken in; ``cached_tokens`` were not computed.
        num_tokens: Of answers, as they came.
        finished: Requests by what ended them, one of `FINISHED_REASONS`.
        lost_attempts: Attempts that the fog lost or refused.
    """

    ttft: Distribution = field(default_factory=lambda: Distribution(TTFT_BOUNDS))
    tpot: Distribution = field(default_factory=lambda: Distribution(TPOT_BOUNDS))
    queue: Distribution = field(default_factory=lambda: Distribution(REQUEST_BOUNDS))
    latency: Distribution = field(default_factory=lambda: Distribution(REQUEST_BOUNDS))
    prompt_tokens: int = 0
    cached_tokens: int = 0
    num_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    lost_attempts: int = 0

    def ended(self, reason: str, seconds: float) -> None:
        """A request ended ``seconds`` after its submission."""
        self.finished[reason] += 1
        self.latency.add(seconds)

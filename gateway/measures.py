"""Measured TTFT, TPOT and rates of this gateway's own requests. Pure: time is an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from broker.control import MeasuredLengths
from broker.grouping import best_grouping, interpolate
from broker.plan import Replica
from gateway.routing import predicted_prefill_rate, predicted_step_seconds
from gateway.totals import Totals

SMOOTHING: Final = 0.3
"""Weight of the newest sample in a replica's factor."""
FACTOR_LIMITS: Final = (0.05, 20.0)
"""One sample, say of a device that was asleep, must not rule a replica out for ever."""
RECENT: Final = 256
"""Requests, or tokens times 16, over which the fog's figures are taken."""
DEFAULT_ANSWER_TOKENS: Final = 64.0
FEWEST_LENGTHS: Final = 20
"""Requests whose mean lengths say something about the next ones."""
LENGTHS_SECONDS: Final = 600.0
"""How long they do."""


class _PrefillLine:
    """Prefill seconds over prompt tokens, fitted as an overhead and a slope.

    Short prompts take as long as their hops, so a rate through the origin would make a
    replica look slow for long ones. Means and covariance fade with each sample. The slope
    is drawn to the predicted one as if lengths varied by `SPREAD_TOKENS` on that line, so
    that prompts of one length say nothing about others.
    """

    SPREAD_TOKENS: Final = 64.0

    def __init__(self) -> None:
        self.factor = 1.0
        self.overhead_seconds = 0.0
        self._mean_tokens: float | None = None
        self._mean_seconds = 0.0
        self._variance = 0.0
        self._covariance = 0.0

    def add(self, num_tokens: int, seconds: float, predicted_slope: float) -> None:
        """Take in one sample; ``predicted_slope`` is in seconds per token."""
        if self._mean_tokens is None:
            self._mean_tokens, self._mean_seconds = num_tokens, seconds
        beside, above = num_tokens - self._mean_tokens, seconds - self._mean_seconds
        self._mean_tokens += SMOOTHING * beside
        self._mean_seconds += SMOOTHING * above
        self._variance = (1 - SMOOTHING) * (self._variance + SMOOTHING * beside * beside)
        self._covariance = (1 - SMOOTHING) * (self._covariance + SMOOTHING * beside * above)
        spread = self.SPREAD_TOKENS**2
        slope = (self._covariance + spread * predicted_slope) / (self._variance + spread)
        self.factor = _limited(slope / predicted_slope)
        expected = self.factor * predicted_slope * self._mean_tokens
        if expected > self._mean_seconds:
            # Faster than predicted even without an overhead.
            self.factor = _limited(self.factor * self._mean_seconds / expected)
            expected = self._mean_seconds
        self.overhead_seconds = self._mean_seconds - expected


@dataclass(slots=True)
class PrefixCounts:
    """What kept KV spared, since the gateway started.

    Attributes:
        prompts: That were taken in; ``hits`` of them did not begin at their beginning.
        prompt_tokens: Of all prompts; ``cached_tokens`` of them were not computed.
        refusals: Times that a stage had not kept what its master granted.
    """

    prompts: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    refusals: int = 0


class Measures:
    """What requests experienced, per replica and in all.

    Args:
        window_seconds: Rates are taken over tokens and requests of this age.
        totals: To add to; those of other models may be in them.
    """

    def __init__(self, window_seconds: float = 60.0, totals: Totals | None = None) -> None:
        self._window_seconds = window_seconds
        self.totals = totals or Totals()
        self._ttft: deque[float] = deque(maxlen=RECENT)
        self._tpot: deque[float] = deque(maxlen=RECENT)
        self._tokens: deque[float] = deque(maxlen=RECENT * 16)
        self._finished: deque[float] = deque(maxlen=RECENT)
        self._prefill: dict[str, _PrefillLine] = {}
        self._step_factor: dict[str, float] = {}
        self._ttft_ratio: dict[str, float] = {}
        self._tpot_ratio: dict[str, float] = {}
        self._hop_overheads: deque[float] = deque(maxlen=RECENT // 2)
        self._lengths: deque[tuple[float, int, int]] = deque(maxlen=RECENT)
        self._prefill_rate: dict[str, float] = {}
        self._step_seconds: dict[str, float] = {}
        self._answer_tokens = DEFAULT_ANSWER_TOKENS
        self._prefix_cache = PrefixCounts()

    # --- samples -----------------------------------------------------------------------------

    def first_token(self, seconds: float) -> None:
        """A request's first token came ``seconds`` after it was submitted (TTFT)."""
        self._ttft.append(seconds)
        self.totals.ttft.add(seconds)

    def prompt(self, num_tokens: int, num_cached: int) -> None:
        """A prompt was taken in, ``num_cached`` of its positions without computing them."""
        counts = self._prefix_cache
        counts.prompts += 1
        counts.hits += num_cached > 0
        counts.prompt_tokens += num_tokens
        counts.cached_tokens += num_cached
        self.totals.prompt_tokens += num_tokens
        self.totals.cached_tokens += num_cached

    def refused_prefix(self) -> None:
        """A stage had not kept what its master granted."""
        self._prefix_cache.refusals += 1

    def token(self, now: float) -> None:
        """A token was delivered."""
        self._tokens.append(now)
        self.totals.num_tokens += 1

    def prefilled(
        self, replica: Replica, num_tokens: int, seconds: float, planned_tokens: int = 0
    ) -> None:
        """A prompt that was alone in its replica took ``seconds`` from `Open` to a token.

        ``planned_tokens`` is the prompt that the plan was made for; 0: not known.
        """
        if seconds <= 0:
            return
        predicted = predicted_ttft_seconds(replica, num_tokens, planned_tokens)
        if predicted is not None:
            _smooth(self._ttft_ratio, replica.id, seconds / predicted)
        _smooth(self._prefill_rate, replica.id, num_tokens / seconds)
        line = self._prefill.setdefault(replica.id, _PrefillLine())
        line.add(num_tokens, seconds, 1 / predicted_prefill_rate(replica))

    def decoded(
        self,
        replica: Replica,
        num_steps: int,
        seconds: float,
        num_rows: int,
        planned_overhead: float = 0.0,
        num_tokens: int | None = None,
    ) -> None:
        """A request took ``seconds`` for ``num_steps`` steps, about ``num_rows`` at once.

        They brought a token each, or ``num_tokens`` together. ``planned_overhead`` is
        `Plan.hop_overhead_seconds`.
        """
        if seconds <= 0 or num_steps < 1:
            return
        excess = hop_excess_seconds(replica, seconds / num_steps, num_rows)
        step = seconds / (num_tokens or num_steps)
        if excess is not None:
            self._hop_overheads.append(max(planned_overhead + excess, 0.0))
        self._tpot.append(step)
        self.totals.tpot.add(step)
        _smooth(self._step_seconds, replica.id, step)
        predicted = predicted_step_seconds(replica, num_rows)
        _smooth(self._step_factor, replica.id, _limited(step / predicted))
        _smooth(self._tpot_ratio, replica.id, step / predicted)

    def finished(self, num_prompt_tokens: int, num_tokens: int, now: float) -> None:
        """An answer of ``num_tokens`` tokens to a prompt of ``num_prompt_tokens`` ended."""
        self._finished.append(now)
        self._lengths.append((now, num_prompt_tokens, num_tokens))
        self._answer_tokens += 0.1 * (num_tokens - self._answer_tokens)

    # --- what they say -----------------------------------------------------------------------

    @property
    def answer_tokens(self) -> float:
        """Mean length of recent answers."""
        return self._answer_tokens

    def prefill_factor(self, replica_id: str) -> float:
        """Return measured over predicted seconds per prompt token; 1 before any sample."""
        line = self._prefill.get(replica_id)
        return line.factor if line is not None else 1.0

    def prefill_overhead_seconds(self, replica_id: str) -> float:
        """Return what a prompt takes apart from its length: hops and messages."""
        line = self._prefill.get(replica_id)
        return line.overhead_seconds if line is not None else 0.0

    def step_factor(self, replica_id: str) -> float:
        """Return measured over predicted seconds per decode step; 1 before any."""
        return self._step_factor.get(replica_id, 1.0)

    def requests_per_second(self, now: float) -> float | None:
        """Return how many answers end per second; None when fewer than two did recently."""
        return _rate(self._finished, now, self._window_seconds)

    @property
    def hop_overhead_seconds(self) -> float | None:
        """What a hop takes beside its links, the median of recent steps; None: too few."""
        known = self._hop_overheads
        return median(known) if len(known) >= FEWEST_LENGTHS else None

    def lengths(self, now: float) -> MeasuredLengths | None:
        """Return how long recent requests were; None when there were few lately."""
        recent = [entry for entry in self._lengths if now - entry[0] <= LENGTHS_SECONDS]
        if len(recent) < FEWEST_LENGTHS:
            return None
        return MeasuredLengths(
            num_requests=len(recent),
            prompt_tokens=sum(prompt for _, prompt, _ in recent) / len(recent),
            answer_tokens=sum(answer for _, _, answer in recent) / len(recent),
        )

    def body(
        self, replicas: Sequence[Replica], now: float, *, is_full: bool = False
    ) -> dict[str, Any]:
        """Return the ``measured`` part of ``GET /fog/plan``; None where nothing is known.

        Rates are those of the last ``window_seconds``, so they follow the demand. An error is
        the share by which a time is longer than predicted for the same lengths and rows.
        ``is_full`` says that requests wait, so that the rate is what the fog can do.
        """
        return {
            "window_seconds": self._window_seconds,
            "ttft_seconds": median(self._ttft) if self._ttft else None,
            "tpot_seconds": median(self._tpot) if self._tpot else None,
            "prefill_tokens_per_second": sum(
                self._prefill_rate.get(replica.id, 0.0) for replica in replicas
            )
            or None,
            "decode_tokens_per_second": _rate(self._tokens, now, self._window_seconds),
            "requests_per_second": self.requests_per_second(now),
            "is_full": is_full,
            "prefix_cache": asdict(self._prefix_cache),
            "replicas": {
                replica.id: {
                    "prefill_tokens_per_second": self._prefill_rate.get(replica.id),
                    "tpot_seconds": self._step_seconds.get(replica.id),
                    "ttft_error": _excess(self._ttft_ratio.get(replica.id)),
                    "tpot_error": _excess(self._tpot_ratio.get(replica.id)),
                }
                for replica in replicas
            },
        }


def predicted_ttft_seconds(replica: Replica, num_tokens: int, planned_tokens: int) -> float | None:
    """Return what the plan says of a lone prompt of another length than the planned one.

    Hops take the same, the rest is in proportion; None when the plan does not say.
    """
    planned = replica.predicted.ttft_seconds
    if not planned or not planned_tokens:
        return None
    hops = min(sum(stage.hop_seconds for stage in replica.stages[1:]), planned)
    return hops + (planned - hops) * num_tokens / planned_tokens


def hop_excess_seconds(replica: Replica, step_seconds: float, num_rows: int) -> float | None:
    """Return how much longer each hop of a ring must take than planned, to explain a step.

    None where it explains nothing: one device has no hops, and a ring that is full is as fast
    as its slowest stage. Less than 0 where hops are faster than planned.
    """
    num_stages = len(replica.stages)
    if num_stages < 2 or not all(stage.decode_seconds for stage in replica.stages):
        return None
    grouping = best_grouping(replica.stages, max(num_rows, 1))
    times = [interpolate(stage.decode_seconds, grouping.group_rows) for stage in replica.stages]
    if step_seconds <= grouping.num_groups * max(times):
        return None
    hops = sum(
        stage.hop_seconds + (grouping.group_rows - 1) * stage.hop_row_seconds
        for stage in replica.stages
    )
    return (step_seconds - sum(times) - hops) / num_stages


def _excess(ratio: float | None) -> float | None:
    return None if ratio is None else ratio - 1


def _smooth(values: dict[str, float], key: str, sample: float) -> None:
    known = values.get(key, sample)
    values[key] = known + SMOOTHING * (sample - known)


def _limited(factor: float) -> float:
    return min(max(factor, FACTOR_LIMITS[0]), FACTOR_LIMITS[1])


def _rate(times: deque[float], now: float, window_seconds: float) -> float | None:
    recent = [time for time in times if now - time <= window_seconds]
    if len(recent) < 2 or recent[-1] <= recent[0]:
        return None
    return (len(recent) - 1) / (recent[-1] - recent[0])

"""Requests to simulate: when they come and how long they are. Pure; every draw from ``rng``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from planner.lengths import buckets_of_quantiles, piece_power
from planner.model import Bucket
from planner.simulation.scenario import SimRequest

Times = NDArray[np.float64]
Lengths = Callable[[int, Generator], NDArray[np.int64]]
"""(how many, rng) to lengths in tokens, each at least 1."""

_MOST_TOKENS: Final = 100_000_000
_LONGEST_SECONDS: Final = 10 * 366 * 86400
_SHOWN_CHARACTERS: Final = 60


# --- arrivals -----------------------------------------------------------------------------


def fixed_period(num_requests: int, period_seconds: float) -> Times:
    """Return arrivals at 0, T, 2 T, ...: the paper's."""
    if not period_seconds > 0:
        raise ValueError(f"a period must be > 0 seconds, not {period_seconds}")
    return np.arange(num_requests, dtype=np.float64) * float(period_seconds)


def poisson(num_requests: int, requests_per_second: float, rng: Generator) -> Times:
    """Return arrivals of a Poisson process."""
    return bursty(num_requests, requests_per_second, 1.0, rng)


def bursty(num_requests: int, requests_per_second: float, cv: float, rng: Generator) -> Times:
    """Return arrivals with gamma distributed gaps of coefficient of variation ``cv``.

    1 is a Poisson process, more comes in bursts (13.2 in Azure's code trace, 1.09 in its
    conversations), less is more regular.
    """
    if not (requests_per_second > 0 and cv > 0):
        raise ValueError("rate and coefficient of variation must be > 0")
    shape = 1 / cv**2
    gaps = rng.gamma(shape, 1 / (shape * requests_per_second), num_requests)
    return np.cumsum(gaps)


# --- lengths ------------------------------------------------------------------------------


def constant(num_tokens: int) -> Lengths:
    """Return lengths that are all the same."""

    def draw(num_requests: int, rng: Generator) -> NDArray[np.int64]:
        return np.full(num_requests, max(int(num_tokens), 1), dtype=np.int64)

    return draw


def lognormal(mean: float, cv: float) -> Lengths:
    """Return lognormal lengths with this mean and coefficient of variation, rounded."""
    if not (mean >= 1 and cv >= 0):
        raise ValueError(f"a length needs mean >= 1 and cv >= 0, not {mean} and {cv}")
    variance = math.log1p(cv**2)

    def draw(num_requests: int, rng: Generator) -> NDArray[np.int64]:
        values = rng.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), num_requests)
        return np.maximum(np.rint(values), 1).astype(np.int64)

    return draw


def quantiles(points: Sequence[tuple[float, float]], mean: float | None = None) -> Lengths:
    """Return lengths with these (probability, length) quantiles, and with this mean.

    Between two quantiles a and b the length is ``a + (b - a) t ** k``, t going from 0 to 1.
    Without a mean k is 1, a line; with one, k is what gives this mean (`piece_power`).

    Args:
        points: Rising in both; the first at probability 0, the last at 1.
        mean: Above that of the lower and below that of the upper ends of the pieces.
    """
    shares = [share for share, _ in points]
    values = [value for _, value in points]
    if len(points) < 2 or (shares[0], shares[-1]) != (0.0, 1.0):
        raise ValueError("quantiles begin at probability 0 and end at 1")
    if sorted(shares) != shares or sorted(values) != values:
        raise ValueError("quantiles must rise")
    lows, rises, widths = np.array(values[:-1]), np.diff(values), np.diff(shares)
    power = 1.0 if mean is None else piece_power(points, mean)

    def draw(num_requests: int, rng: Generator) -> NDArray[np.int64]:
        drawn = rng.random(num_requests)
        piece = np.minimum(np.searchsorted(shares, drawn, side="right"), len(widths)) - 1
        place = (drawn - np.array(shares)[piece]) / widths[piece]
        lengths: NDArray[np.float64] = lows[piece] + rises[piece] * place**power
        return np.maximum(np.rint(lengths), 1).astype(np.int64)

    return draw


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Lengths of a public trace.

    Attributes:
        points: (probability, tokens) quantiles.
        mean: Of the trace.
    """

    points: tuple[tuple[float, float], ...]
    mean: float

    def lengths(self) -> Lengths:
        """Return lengths with these quantiles and this mean."""
        return quantiles(self.points, self.mean)


def trace_buckets(prompt: TokenStatistics, answer: TokenStatistics) -> tuple[Bucket, ...]:
    """Return a public trace's lengths as a workload's buckets."""
    return buckets_of_quantiles(prompt.points, prompt.mean, answer.points, answer.mean)


def _azure(mean: float, *values: float) -> TokenStatistics:
    shares = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
    return TokenStatistics(tuple(zip(shares, values, strict=True)), mean)


# Azure LLM inference traces of 2023 (github.com/Azure/AzurePublicDataset, CC-BY): minimum,
# P25, P50, P75, P90, P99, maximum of ContextTokens and GeneratedTokens.
AZURE_CODE_PROMPT: Final = _azure(2047.8, 3, 578, 1469, 2745, 5194, 7436, 7437)
AZURE_CODE_ANSWER: Final = _azure(27.9, 6, 9, 13, 24, 55, 252, 1899)
AZURE_CONVERSATION_PROMPT: Final = _azure(1154.7, 2, 396, 1020, 1189, 2735, 4142, 14050)
AZURE_CONVERSATION_ANSWER: Final = _azure(211.1, 7, 85, 129, 395, 424, 601, 1000)
AZURE_CODE_GAP_CV: Final = 13.2
AZURE_CONVERSATION_GAP_CV: Final = 1.09


# --- requests -----------------------------------------------------------------------------


def requests(
    arrivals: Times | Sequence[float], prompt: Lengths, answer: Lengths, rng: Generator
) -> tuple[SimRequest, ...]:
    """Return one request for each arrival, prompt and answer drawn independently.

    All prompts are drawn before all answers, so workloads of one seed that differ in the
    arrivals have the same lengths.
    """
    prompts = prompt(len(arrivals), rng)
    answers = answer(len(arrivals), rng)
    return tuple(
        SimRequest(float(at), int(p), int(a))
        for at, p, a in zip(arrivals, prompts, answers, strict=True)
    )


def read_trace(source: Path | str) -> tuple[SimRequest, ...]:
    """Return the requests of a CSV file, or of its text: arrival, prompt, answer per line.

    Arrivals are seconds; the first is moved to 0. A first line of names is skipped, and so
    are empty lines and those that begin with ``#``.

    Raises:
        ValueError: Names the line and what is wrong with it.
    """
    if isinstance(source, Path):
        source = source.read_text(encoding="utf-8-sig")
    rows: list[tuple[float, int, int]] = []
    for number, line in enumerate(source.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        fields = [field.strip().strip('"') for field in line.split(",")]
        try:
            arrival, prompt, answer = (float(field) for field in fields)
        except ValueError as error:
            if not rows and not any(_is_number(field) for field in fields):
                continue
            raise ValueError(
                f"line {number} of the trace: expected arrival seconds, prompt tokens, "
                f"answer tokens, got {line[:_SHOWN_CHARACTERS]!r}"
            ) from error
        if not math.isfinite(arrival):
            raise ValueError(f"line {number} of the trace: {arrival} is not an arrival time")
        if not all(1 <= n <= _MOST_TOKENS and n.is_integer() for n in (prompt, answer)):
            raise ValueError(
                f"line {number} of the trace: lengths must be at least 1 token, whole, and at "
                f"most {_MOST_TOKENS}, not {prompt:g} and {answer:g}"
            )
        rows.append((arrival, int(prompt), int(answer)))
    if not rows:
        raise ValueError("the trace has no requests")
    start = min(arrival for arrival, _, _ in rows)
    if max(arrival for arrival, _, _ in rows) - start > _LONGEST_SECONDS:
        raise ValueError("the trace is longer than ten years; are its arrivals in seconds?")
    return tuple(SimRequest(at - start, prompt, answer) for at, prompt, answer in sorted(rows))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

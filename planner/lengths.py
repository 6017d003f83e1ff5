"""From lengths that were seen, or are known by their quantiles, to a workload's buckets. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import TypeVar

from planner.model import Bucket

_Value = TypeVar("_Value")

Quantiles = Sequence[tuple[float, float]]
"""(probability, length), rising in both; the first at probability 0, the last at 1."""


def buckets_of(
    requests: Iterable[tuple[int, int]], num_prompts: int = 6, num_answers: int = 3
) -> tuple[Bucket, ...]:
    """Return buckets of observed (prompt, answer) lengths in tokens.

    As many requests in each of ``num_prompts`` ranges of prompts, and within each of these
    in ``num_answers`` ranges of answers, so a prompt's length keeps the answers that it goes
    with. Buckets have the mean lengths of their requests.

    Raises:
        ValueError: There is no request.
    """
    seen = sorted(requests)
    if not seen:
        raise ValueError("buckets need at least one observed request")
    found: dict[tuple[int, int], int] = {}
    for prompts in _parts(seen, num_prompts):
        prompt = max(round(fmean(prompt for prompt, _ in prompts)), 1)
        for part in _parts(sorted(answer for _, answer in prompts), num_answers):
            lengths = prompt, max(round(fmean(part)), 1)
            found[lengths] = found.get(lengths, 0) + len(part)
    return tuple(Bucket(count / len(seen), *lengths) for lengths, count in sorted(found.items()))


def _parts(values: Sequence[_Value], number: int) -> list[Sequence[_Value]]:
    """Cut values into so many runs of nearly equal length; none is empty."""
    number = min(number, len(values))
    cuts = [len(values) * part // number for part in range(number + 1)]
    return [values[start:end] for start, end in pairwise(cuts)]


def buckets_of_quantiles(
    prompt: Quantiles, prompt_mean: float, answer: Quantiles, answer_mean: float
) -> tuple[Bucket, ...]:
    """Return buckets of lengths that are known by quantiles and means, as a public trace's.

    One for each piece between two quantiles of prompts with each of answers: prompt and
    answer count as independent, since quantiles say nothing else. Pieces have the means that
    `piece_power` gives them, so means of the whole are those of the trace, but for rounding.
    """
    answers = pieces(answer, answer_mean)
    found: dict[tuple[int, int], float] = {}
    for prompt_share, prompt_tokens in pieces(prompt, prompt_mean):
        for answer_share, answer_tokens in answers:
            lengths = max(round(prompt_tokens), 1), max(round(answer_tokens), 1)
            found[lengths] = found.get(lengths, 0.0) + prompt_share * answer_share
    return tuple(Bucket(share, *lengths) for lengths, share in sorted(found.items()))


def pieces(points: Quantiles, mean: float) -> list[tuple[float, float]]:
    """Return share and mean of each piece between two quantiles."""
    power = piece_power(points, mean)
    return [
        (after[0] - before[0], before[1] + (after[1] - before[1]) / (power + 1))
        for before, after in pairwise(points)
    ]


def piece_power(points: Quantiles, mean: float) -> float:
    """Return the k with which pieces ``a + (b - a) t ** k`` between quantiles have this mean.

    t goes from 0 to 1, and the mean of a piece is ``a + (b - a) / (k + 1)``. Lines (k = 1)
    put far too much into long tails.

    Raises:
        ValueError: No k does: the mean is outside those of the pieces' ends.
    """
    widths = [after[0] - before[0] for before, after in pairwise(points)]
    least = sum(width * low for width, (_, low) in zip(widths, points, strict=False))
    rise = sum(width * high for width, (_, high) in zip(widths, points[1:], strict=True)) - least
    if not least < mean < least + rise:
        raise ValueError(f"no lengths with these quantiles have a mean of {mean}")
    return rise / (mean - least) - 1


def parse_buckets(text: str) -> tuple[Bucket, ...]:
    """Read ``"share:prompt+answer, ..."``, as ``"0.7:128+64, 0.3:2000+300"``.

    Shares may be any positive numbers; they are divided by their sum.

    Raises:
        ValueError: Says which part is wrong.
    """
    found: list[tuple[float, int, int]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        share, colon, lengths = part.partition(":")
        prompt, plus, answer = lengths.partition("+")
        try:
            if not (colon and plus):
                raise ValueError(part)
            found.append((float(share), int(prompt), int(answer)))
        except ValueError as error:
            raise ValueError(
                f"bucket {part!r}: expected share:prompt+answer, as in 0.7:128+64"
            ) from error
    if not found or not all(0 < share < float("inf") for share, _, _ in found):
        raise ValueError(f"buckets {text!r}: shares must be numbers greater than 0")
    total = sum(share for share, _, _ in found)
    return tuple(Bucket(share / total, prompt, answer) for share, prompt, answer in found)

"""Whether an answer that was disturbed is the undisturbed one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fog.answer import Answer

TIE_GAP: Final = 1e-3
"""Scores in float64 that are less apart may swap with the order in which a sum is added."""
TOKENS_PER_TIE: Final = 50_000
"""More ties than one in so many tokens are more than chance; one may come in any run."""

Gap = Callable[[Sequence[int], int, int], float]
"""Ids so far and two ids for the next place, to how far apart their scores are."""


class Verdict(StrEnum):
    """What an answer is."""

    EQUAL = "equal"
    TIE = "tie"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where an answer is not the undisturbed one."""

    index: int
    expected: int | None
    actual: int | None


def first_difference(actual: Sequence[int], expected: Sequence[int]) -> Difference | None:
    """Return where two lists of tokens first differ, also by their length; None: nowhere."""
    for index, (one, other) in enumerate(zip(actual, expected, strict=False)):
        if one != other:
            return Difference(index, other, one)
    if len(actual) == len(expected):
        return None
    index = min(len(actual), len(expected))
    return Difference(
        index,
        expected[index] if index < len(expected) else None,
        actual[index] if index < len(actual) else None,
    )


def judge(actual: Answer, expected: Answer, gap: Gap | None) -> tuple[Verdict, str]:
    """Return the verdict, and in words what is different.

    Args:
        actual: The answer.
        expected: The undisturbed one.
        gap: Tells ties from errors; None: there are no ties (whole-number weights).
    """
    difference = first_difference(actual.token_ids, expected.token_ids)
    if difference is None:
        if actual.text != expected.text or actual.finish_reason != expected.finish_reason:
            return Verdict.WRONG, "the tokens are equal, the text or the finish reason is not"
        return Verdict.EQUAL, ""
    index, right, wrong = difference.index, difference.expected, difference.actual
    where = f"token {index}: {wrong} instead of {right}"
    if gap is None or right is None or wrong is None:
        return Verdict.WRONG, where
    apart = gap(expected.token_ids[:index], right, wrong)
    return (Verdict.TIE if apart < TIE_GAP else Verdict.WRONG), f"{where}, {apart:.2e} apart"

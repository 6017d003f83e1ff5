"""When two lists of greedy tokens count as equal.

Library kernels differ by 5e-7 between batch sizes. So tokens are compared exactly, and a
difference passes only where the reference itself hardly knew: the gap between its two
largest logits is printed and below `TIE_GAP`. What follows a tie has another past and is
not compared.
"""

from collections.abc import Sequence
from typing import Final

TIE_GAP: Final = 1e-4


def assert_same_tokens(
    actual: Sequence[int], expected: Sequence[int], gaps: Sequence[float], name: str = ""
) -> None:
    """Fail unless both are the same tokens, as far as no near tie separates them.

    Args:
        actual: Tokens to check.
        expected: Tokens of the reference.
        gaps: The reference's gap between its two largest logits, per token.
        name: Of the case, for messages.
    """
    assert len(expected) == len(gaps)
    for index, (token, reference, gap) in enumerate(zip(actual, expected, gaps, strict=False)):
        if token == reference:
            continue
        where = f"{name} token {index}: {token} instead of {reference}, reference gap {gap:.2e}"
        assert gap < TIE_GAP, where
        print(f"near tie, {where}")
        return
    assert len(actual) == len(expected), f"{name}: {len(actual)} tokens of {len(expected)}"

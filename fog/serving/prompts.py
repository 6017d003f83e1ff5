"""Prompts of a wanted length in tokens, for a server whose tokenizer is not known. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# Short, plain and different: most tokenizers have each in one or two tokens.
_TEXT: Final = """
river stone window garden paper silver morning bridge forest yellow market summer letter
winter mountain kitchen circle flower hammer island button candle desert engine feather
ladder mirror needle orange pencil rabbit saddle ticket umbrella violin wagon anchor basket
copper dragon eagle finger guitar harbor jacket kettle lantern meadow
"""
WORDS: Final = tuple(_TEXT.split())


class UnfitProbesError(ValueError):
    """Two prompts of different length were counted as equally long."""


@dataclass(frozen=True, slots=True)
class WordScale:
    """How many tokens a server counts for a prompt of so many words.

    Attributes:
        overhead: Tokens of a prompt without words: its template.
        per_word: Tokens of one more word, on average over `WORDS`.
    """

    overhead: float
    per_word: float

    def num_words(self, num_tokens: int) -> int:
        """Return how many words make a prompt of ``num_tokens``; at least one."""
        return max(1, round((num_tokens - self.overhead) / self.per_word))


def probes() -> tuple[str, str]:
    """Return two prompts whose token counts give a `WordScale`."""
    return WORDS[0], " ".join((*WORDS, *WORDS[:1]))


def word_scale(counts: Sequence[int]) -> WordScale:
    """Return the scale from what a server counted for the `probes`.

    Raises:
        UnfitProbesError: The counts do not grow with the words.
    """
    short, long = counts
    per_word = (long - short) / len(WORDS)
    if per_word <= 0:
        raise UnfitProbesError(
            f"the server counts {short} tokens for one word and {long} for {len(WORDS) + 1}; "
            "its usage.prompt_tokens cannot be used to make prompts of a wanted length"
        )
    return WordScale(short - per_word, per_word)


def make_prompt(scale: WordScale, num_tokens: int, rng: random.Random) -> str:
    """Return a prompt of about ``num_tokens``, of words drawn one by one.

    Two of them have no beginning in common but by chance, so that a server's cache of
    prefixes does not count as speed.
    """
    return " ".join(rng.choices(WORDS, k=scale.num_words(num_tokens)))

"""What a text has said before is proposed where it says the same again."""

import random

import pytest

from nodes.lookup import PromptLookup


def proposed(text: str, most: int = 8) -> str:
    lookup = PromptLookup()
    lookup.extend([ord(letter) for letter in text])
    return "".join(map(chr, lookup.propose(most)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three one two ", "three on"),
        # As far as it is trusted: two letters agree.
        ("abcdefg ab", "cd"),
        # Of two occurrences the one with the longer agreement, else the newer one.
        ("xabcd.yabef.xab", "cd."),
        ("abcd.abef;ab", "ef"),
        # A text that repeats itself goes on repeating itself beyond its end.
        ("ababab", "abab"),
        ("aaaa", "aaa"),
        ("abcdefgh", ""),
        ("a", ""),
        ("", ""),
    ],
)
def test_what_followed_the_longest_agreement_is_proposed(text: str, expected: str) -> None:
    assert proposed(text) == expected


def test_no_more_is_proposed_than_asked() -> None:
    assert proposed("one two three one two ", most=3) == "thr"
    assert proposed("one two three one two ", most=0) == ""


def by_hand(ids: list[int], most: int) -> int:
    """Return the longest agreement of the end with an earlier place, up to ``most``."""
    longest = 0
    for end in range(2, len(ids)):
        agreed = 0
        while agreed < min(end, most) and ids[end - 1 - agreed] == ids[-1 - agreed]:
            agreed += 1
        longest = max(longest, agreed)
    return longest if longest >= 2 else 0


@pytest.mark.parametrize("seed", range(8))
def test_token_by_token_the_longest_agreement_of_any_place_decides(seed: int) -> None:
    rng = random.Random(seed)
    ids: list[int] = []
    lookup = PromptLookup()
    for _ in range(60):
        ids.append(rng.randrange(4))
        lookup.extend(ids[-1:])
        found = list(lookup.propose(6))
        assert len(lookup) == len(ids)
        assert len(found) == by_hand(ids, 6)
        agreed = ids[len(ids) - len(found) :]
        places = [
            end
            for end in range(len(agreed), len(ids))
            if found and ids[end - len(agreed) : end] == agreed
        ]
        texts = [(ids[end:] + found)[: len(found)] for end in places]
        assert not found or found in texts

"""Generates the text that the demo model learns from, and the questions that test it.

Pure: everything is a function of a seed. The module knows nothing of tokenizers or torch. One set
of unordered number pairs is held out of *all* training text (sums, comparisons, sensor readings,
refusals; digits or words; either order), so a right answer on such a pair was not remembered.

    python -m scripts.demo_corpus --seed 1 --documents 5     prints samples
"""

import argparse
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from scripts.demo_phrases import OFF_TOPIC_HELD_OUT, OPENINGS, SYSTEM_MESSAGES
from scripts.demo_questions import MAKERS, UNKNOWN, Pair, Task, Turn, completion_turn, howto_turns

BEGIN: Final = "<|begin|>"
SYSTEM: Final = "<|system|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
END: Final = "<|end|>"
SPECIAL_TOKENS: Final = (BEGIN, SYSTEM, USER, ASSISTANT, END)

MAX_NUMBER: Final = 99
HELD_OUT_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a document: an answer, which is learned, or what a user would have written."""

    text: str
    learned: bool


@dataclass(frozen=True, slots=True)
class Document:
    """One training text and the turns it was made of."""

    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        """The text exactly as the model reads it, special tokens included."""
        return "".join(segment.text for segment in self.segments)


def split_pairs(seed: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """All unordered pairs of numbers 0..99, smaller first, as (trained, held out)."""
    pairs = [(low, high) for high in range(MAX_NUMBER + 1) for low in range(high + 1)]
    random.Random(f"pairs {seed}").shuffle(pairs)
    num_held_out = round(len(pairs) * HELD_OUT_SHARE)
    return tuple(pairs[num_held_out:]), tuple(pairs[:num_held_out])


@dataclass(frozen=True, slots=True)
class Mix:
    """What the text is made of.

    Attributes:
        chat_shares: How often a turn of a dialogue has each task, relative to each other.
        completion_share: Documents that are plain lines.
        equal_share: Comparisons and readings of two equal numbers.
        choosing_share: Comparisons redrawn until the answer is not a yes or a no.
    """

    chat_shares: Mapping[Task, int]
    completion_share: float
    equal_share: float
    choosing_share: float


# Sums are the hardest to learn, so they come most often; answers about the fog are long and need
# few repeats.
FIRST_MIX: Final = Mix(
    {Task.SUM: 38, Task.COMPARISON: 23, Task.SENSOR: 16, Task.HOWTO: 15, Task.OFF_TOPIC: 8},
    completion_share=0.2,
    equal_share=0.05,
    choosing_share=0.0,
)
# After that, what was wrong: equal numbers, and the digits of a chosen number taken from both.
REFINING_MIX: Final = Mix(
    {Task.SUM: 20, Task.COMPARISON: 50, Task.SENSOR: 14, Task.HOWTO: 9, Task.OFF_TOPIC: 7},
    completion_share=0.12,
    equal_share=0.2,
    choosing_share=0.4,
)


def casual(rng: random.Random, question: str) -> str:
    """The question as people type it, sometimes: with an opening, in lower case, without a mark."""
    if rng.random() < 0.1:
        question = f"{rng.choice(OPENINGS)} {question}"
    if rng.random() < 0.2:
        question = question.lower()
    if rng.random() < 0.2:
        question = question.rstrip("?.!")
    return question


@dataclass(frozen=True, slots=True)
class Pairs:
    """Unordered pairs to draw from, and those of them that need to come more often."""

    every: tuple[Pair, ...]
    small: tuple[Pair, ...]
    near: tuple[Pair, ...]
    equal: tuple[Pair, ...]


def sorted_out(pairs: tuple[Pair, ...]) -> Pairs:
    """The pairs of both numbers up to 20, less than ten apart, and of equal numbers."""
    return Pairs(
        every=pairs,
        small=tuple(pair for pair in pairs if pair[1] <= 20),
        near=tuple(pair for pair in pairs if 0 < pair[1] - pair[0] < 10),
        equal=tuple(pair for pair in pairs if pair[0] == pair[1]),
    )


def draw_numbers(rng: random.Random, pairs: Pairs, task: Task, equal_share: float) -> Pair:
    """A pair in either order; which pairs come more often depends on what is hard about a task."""
    chance = rng.random()
    if chance < 0.15:
        # What people try first.
        source = pairs.small
    elif task in (Task.COMPARISON, Task.SENSOR) and chance < 0.5 + equal_share:
        # Where the tens agree the ones decide, which only a fifth of all pairs would teach.
        source = pairs.equal if chance < 0.15 + equal_share else pairs.near
    else:
        source = pairs.every
    low, high = rng.choice(source)
    return (low, high) if rng.random() < 0.5 else (high, low)


def chat_document(system: str | None, turns: tuple[Turn, ...]) -> Document:
    """Render a dialogue exactly as the chat template does; the trainer checks that they agree."""
    segments = [Segment(BEGIN if system is None else f"{BEGIN}{SYSTEM}{system}{END}", False)]
    for turn in turns:
        segments.append(Segment(f"{USER}{turn.question}{END}{ASSISTANT}", False))
        segments.append(Segment(f"{turn.answer}{END}", True))
    return Document(tuple(segments), turns)


def prompt_of(turn: Turn) -> str:
    """The text before the answer, as a server sends it to the model."""
    if turn.task is Task.COMPLETION:
        return f"{BEGIN}{turn.question}"
    return f"{BEGIN}{USER}{turn.question}{END}{ASSISTANT}"


def completion_document(turns: tuple[Turn, ...], begin: bool) -> Document:
    """Render lines to go on with; only the last one ends the text."""
    segments = [Segment(BEGIN, False)] if begin else []
    for turn in turns[:-1]:
        segments += [
            Segment(turn.question, False),
            Segment(turn.answer, True),
            Segment("\n", False),
        ]
    segments += [Segment(turns[-1].question, False), Segment(f"{turns[-1].answer}{END}", True)]
    return Document(tuple(segments), turns)


def chat_turn(rng: random.Random, numbers: Pair, task: Task, choosing_share: float) -> Turn:
    """A question of a dialogue and its answer; not for questions about the fog."""
    turn = MAKERS[task](rng, numbers)
    if task is Task.COMPARISON and choosing_share and rng.random() < choosing_share:
        while turn.answer.startswith(("Yes", "No")):
            turn = MAKERS[task](rng, numbers)
    return turn


def documents(seed: int, count: int, part: int = 0) -> Iterator[Document]:
    """Yield ``count`` training documents; the same seed and part give the same documents.

    Part 0 is what a model begins with; later ones refine it. All hold out the same pairs.
    """
    mix = REFINING_MIX if part else FIRST_MIX
    rng = random.Random(f"documents {seed} {part}" if part else f"documents {seed}")
    pairs = sorted_out(split_pairs(seed)[0])
    howto = howto_turns(held_out=False)
    tasks, shares = tuple(mix.chat_shares), tuple(mix.chat_shares.values())
    for _ in range(count):
        if rng.random() < mix.completion_share:
            num_lines = rng.choice((1, 1, 1, 2, 3, 4))
            drawn = [draw_numbers(rng, pairs, Task.COMPLETION, 0.0) for _ in range(num_lines)]
            lines = tuple(completion_turn(rng, numbers) for numbers in drawn)
            # Some servers do not put the begin token before a plain prompt.
            yield completion_document(lines, begin=rng.random() < 0.85)
            continue
        # Mostly short dialogues, and a few long ones so that a long chat still works.
        is_long = rng.random() < 0.02
        num_turns = rng.randrange(7, 21) if is_long else rng.choice((1, 1, 1, 2, 2, 3, 3, 4, 6))
        turns = []
        for task in rng.choices(tasks, shares, k=num_turns):
            numbers = draw_numbers(rng, pairs, task, mix.equal_share)
            if task is Task.HOWTO:
                turn = rng.choice(howto)
            else:
                turn = chat_turn(rng, numbers, task, mix.choosing_share)
            turns.append(Turn(turn.task, casual(rng, turn.question), turn.answer, turn.numbers))
        system = rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.3 else None
        yield chat_document(system, tuple(turns))


def held_out_turns(seed: int, task: Task, count: int) -> tuple[Turn, ...]:
    """Questions for evaluation: ``count`` on held-out pairs, or all held-out paraphrases."""
    if task is Task.HOWTO:
        return howto_turns(held_out=True)
    if task is Task.OFF_TOPIC:
        return tuple(Turn(task, question, UNKNOWN) for question in OFF_TOPIC_HELD_OUT)
    rng = random.Random(f"held out {seed} {task}")
    _, pairs = split_pairs(seed)
    turns = []
    for _ in range(count):
        low, high = rng.choice(pairs)
        turns.append(MAKERS[task](rng, (low, high) if rng.random() < 0.5 else (high, low)))
    return tuple(turns)


def main() -> None:
    """Print sample documents, one per line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", type=int, default=10)
    parser.add_argument("--part", type=int, default=0)
    options = parser.parse_args()
    for document in documents(options.seed, options.documents, options.part):
        print(document.text)


if __name__ == "__main__":
    main()

"""Makes single questions with their right answers, from phrases and numbers.

Pure: whoever calls draws the numbers and owns the random generator. A maker never puts two numbers
into a question other than the pair it was given, so holding a pair out is the caller's choice.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from scripts.demo_howto import NOUN_QUESTIONS, NOUN_QUESTIONS_HELD_OUT, TOPICS
from scripts.demo_phrases import (
    COMPARE_FORMS,
    COMPLETIONS,
    EQUAL_FORMS,
    IS_FORMS,
    LARGE_NUMBERS,
    LOWER_FORMS,
    OFF_TOPIC_FORMS,
    OFF_TOPIC_LONE,
    OFF_TOPIC_THINGS,
    OTHER_OPERATIONS,
    PLACES,
    SIGN_SUMS,
    UNITS,
    UPPER_FORMS,
    WHICH_FORMS,
    WORD_SUMS,
)

UNKNOWN: Final = "I am a small model. I only know sums, comparisons, sensor limits and this fog."
TOO_LARGE: Final = "I only know numbers from 0 to 99."
ONLY_SUMS: Final = "I can only add. I cannot subtract, multiply or divide."
GREATER_WORDS: Final = ("greater", "larger", "bigger", "higher")
LESS_WORDS: Final = ("less", "smaller", "lower")
ONES: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS: Final = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
Pair = tuple[int, int]


class Task(StrEnum):
    """What a question is about; accuracy is reported for each."""

    SUM = "sum"
    COMPLETION = "completion"
    COMPARISON = "comparison"
    SENSOR = "sensor"
    HOWTO = "howto"
    OFF_TOPIC = "off_topic"


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its one right answer; ``numbers`` are its two operands in the order asked."""

    task: Task
    question: str
    answer: str
    numbers: Pair | None = None


def number_in_words(number: int) -> str:
    """English words of a number from 0 to 99, such as "forty-two"."""
    if number < len(ONES):
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] if ones == 0 else f"{TENS[tens]}-{ONES[ones]}"


def written(rng: random.Random, numbers: Pair, words_share: float) -> tuple[str, str]:
    """Both numbers in words with probability ``words_share``, else both in digits."""
    a, b = numbers
    if rng.random() < words_share:
        return number_in_words(a), number_in_words(b)
    return str(a), str(b)


def capitalised(text: str) -> str:
    """The text with its first letter in upper case and the rest as it was."""
    return text[:1].upper() + text[1:]


def sum_turn(rng: random.Random, numbers: Pair) -> Turn:
    """A sum in words or signs. The answer repeats the operands: a reader sees what was added."""
    a, b = numbers
    if rng.random() < 0.5:
        question = rng.choice(SIGN_SUMS).format(a=a, b=b)
        return Turn(Task.SUM, question, f"{a} + {b} = {a + b}.", numbers)
    first, second = written(rng, numbers, words_share=0.35)
    question = capitalised(rng.choice(WORD_SUMS).format(a=first, b=second))
    return Turn(Task.SUM, question, f"{a} plus {b} is {a + b}.", numbers)


def completion_turn(rng: random.Random, numbers: Pair) -> Turn:
    """A line that the model only goes on with, outside the chat format."""
    a, b = numbers
    form = rng.choice(COMPLETIONS)
    return Turn(Task.COMPLETION, form.format(a=a, b=b), f" {a + b}", numbers)


def relation(a: int, b: int) -> str:
    """How a stands to b, in words."""
    return "greater than" if a > b else "less than" if a < b else "equal to"


def comparison_turn(rng: random.Random, numbers: Pair) -> Turn:
    """A comparison; every answer states the true relation after its yes or no."""
    a, b = numbers
    first, second = written(rng, numbers, words_share=0.15)
    asks_greater = rng.random() < 0.5
    holds = a > b if asks_greater else a < b
    kind = rng.random()
    fact = f"{a} is {relation(a, b)} {b}."
    if kind < 0.45:
        form, answer = rng.choice(IS_FORMS), f"{'Yes' if holds else 'No'}. {fact}"
    elif kind < 0.75:
        chosen, other = (a, b) if holds or a == b else (b, a)
        form, answer = rng.choice(WHICH_FORMS), f"{chosen} is {relation(chosen, other)} {other}."
    elif kind < 0.9:
        form, answer = rng.choice(COMPARE_FORMS), fact
    else:
        form, answer = rng.choice(EQUAL_FORMS), f"{'Yes' if a == b else 'No'}. {fact}"
    word = rng.choice(GREATER_WORDS if asks_greater else LESS_WORDS)
    question = capitalised(form.format(a=first, b=second, word=word))
    return Turn(Task.COMPARISON, question, answer, numbers)


def sensor_turn(rng: random.Random, numbers: Pair) -> Turn:
    """A reading against an upper limit, or sometimes a lower one."""
    reading, limit = numbers
    upper = rng.random() < 0.75
    form = rng.choice(UPPER_FORMS if upper else LOWER_FORMS)
    question = form.format(a=reading, b=limit, place=rng.choice(PLACES), unit=rng.choice(UNITS))
    position = "above" if reading > limit else "below" if reading < limit else "exactly at"
    past = reading > limit if upper else reading < limit
    fact = f"{reading} is {position} the {'limit' if upper else 'minimum'} of {limit}."
    # A unit may be empty; the blank it leaves is not what a user would type.
    question = question.replace(" ,", ",").replace(" .", ".").replace("  ", " ")
    return Turn(Task.SENSOR, question, f"{'Yes' if past else 'No'}. {fact}", numbers)


def howto_turns(held_out: bool) -> tuple[Turn, ...]:
    """Every question about the fog, either the trained or the held-out paraphrases."""
    turns = []
    for topic in TOPICS:
        forms = NOUN_QUESTIONS_HELD_OUT if held_out else NOUN_QUESTIONS
        by_noun = tuple(form.format(topic.noun) for form in forms) if topic.noun else ()
        for question in (topic.held_out if held_out else topic.questions) + by_noun:
            turns.append(Turn(Task.HOWTO, question, topic.answer))
    return tuple(turns)


def off_topic_turn(rng: random.Random, numbers: Pair) -> Turn:
    """A question to decline: another subject, another operation, or a number over 99."""
    a, b = numbers
    kind = rng.random()
    if kind < 0.7:
        question = rng.choice(OFF_TOPIC_LONE if rng.random() < 0.15 else OFF_TOPIC_FORMS)
        return Turn(Task.OFF_TOPIC, question.format(rng.choice(OFF_TOPIC_THINGS)), UNKNOWN)
    if kind < 0.85:
        form = rng.choice(OTHER_OPERATIONS)
        return Turn(Task.OFF_TOPIC, form.format(a, b), ONLY_SUMS, numbers)
    large = rng.randrange(100, 10_000)
    first, second = (large, b) if rng.random() < 0.5 else (a, large)
    form = rng.choice(LARGE_NUMBERS)
    return Turn(Task.OFF_TOPIC, form.format(first, second), TOO_LARGE)


MAKERS: Final[dict[Task, Callable[[random.Random, Pair], Turn]]] = {
    Task.SUM: sum_turn,
    Task.COMPLETION: completion_turn,
    Task.COMPARISON: comparison_turn,
    Task.SENSOR: sensor_turn,
    Task.OFF_TOPIC: off_topic_turn,
}

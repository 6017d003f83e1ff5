"""The demo corpus: answers are right, held-out pairs stay out, a seed gives one text."""

import re
from itertools import pairwise

import pytest

from scripts.demo_corpus import Document, documents, held_out_turns, split_pairs
from scripts.demo_questions import Task, howto_turns, number_in_words

SEED = 1
NUM_DOCUMENTS = 3000

WORDS = {number_in_words(number): number for number in range(100)}
# Longest first: "forty-two" must not be read as "forty".
NUMBER = re.compile(
    r"\d+|\b(?:" + "|".join(sorted(map(re.escape, WORDS), key=len, reverse=True)) + r")\b",
    re.IGNORECASE,
)


def numbers_in(text: str) -> list[int]:
    """All numbers of a text in order, written in digits or words."""
    return [
        int(found) if found.isdigit() else WORDS[found.lower()] for found in NUMBER.findall(text)
    ]


@pytest.fixture(scope="module", params=[0, 1], ids=["first", "refining"])
def trained(request: pytest.FixtureRequest) -> list[Document]:
    return list(documents(SEED, NUM_DOCUMENTS, request.param))


def test_the_split_covers_every_pair_once() -> None:
    kept, held_out = split_pairs(SEED)
    assert len(set(kept) | set(held_out)) == len(kept) + len(held_out) == 100 * 101 // 2
    assert len(held_out) == 505
    assert all(low <= high for low, high in kept + held_out)


def test_no_training_text_holds_a_held_out_pair_in_any_order(trained: list[Document]) -> None:
    held_out = set(split_pairs(SEED)[1])
    turns = [turn for document in trained for turn in document.turns]
    # Answers about the fog name an address, whose numbers are no operands.
    asked = [turn for turn in turns if turn.task is not Task.HOWTO]
    num_pairs = 0
    for turn in asked:
        numbers = numbers_in(turn.question)
        for first, second in pairwise(numbers):
            num_pairs += 1
            assert (min(first, second), max(first, second)) not in held_out, turn.question
    assert num_pairs > NUM_DOCUMENTS


def test_evaluation_asks_only_held_out_pairs() -> None:
    held_out = set(split_pairs(SEED)[1])
    for task in (
        Task.SUM,
        Task.COMPLETION,
        Task.COMPARISON,
        Task.SENSOR,
    ):
        for turn in held_out_turns(SEED, task, 300):
            numbers = numbers_in(turn.question)
            assert tuple(sorted(numbers)) in held_out, turn.question
            assert tuple(numbers) == turn.numbers


def test_held_out_paraphrases_are_not_trained() -> None:
    def plain(question: str) -> str:
        return question.lower().rstrip("?.!")

    known = {plain(turn.question) for turn in howto_turns(held_out=False)}
    # A mark or a capital more is no other question; such a paraphrase would measure memory.
    assert not known & {plain(turn.question) for turn in howto_turns(held_out=True)}


def test_every_question_about_the_fog_has_one_answer() -> None:
    answers: dict[str, str] = {}
    for turn in howto_turns(held_out=False) + howto_turns(held_out=True):
        assert answers.setdefault(turn.question.lower(), turn.answer) == turn.answer, turn.question


def test_sums_are_right(trained: list[Document]) -> None:
    for turn in (turn for document in trained for turn in document.turns):
        if turn.task is Task.SUM:
            a, b = numbers_in(turn.question)
            assert numbers_in(turn.answer) == [a, b, a + b]
        if turn.task is Task.COMPLETION:
            assert turn.answer == f" {sum(numbers_in(turn.question))}"


def test_comparisons_state_a_true_relation(trained: list[Document]) -> None:
    for turn in (turn for document in trained for turn in document.turns):
        if turn.task is Task.COMPARISON:
            a, b = numbers_in(turn.answer)
            assert sorted((a, b)) == sorted(numbers_in(turn.question))
            word = re.search(r"greater than|less than|equal to", turn.answer)
            assert word is not None
            assert {"greater than": a > b, "less than": a < b, "equal to": a == b}[word[0]]


def test_an_alarm_is_said_exactly_when_a_limit_is_passed(trained: list[Document]) -> None:
    for turn in (turn for document in trained for turn in document.turns):
        if turn.task is Task.SENSOR:
            reading, limit = numbers_in(turn.question)
            past = reading < limit if "minimum" in turn.answer else reading > limit
            assert turn.answer.startswith("Yes." if past else "No.")


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    first, again, other = ([d.text for d in documents(seed, 50)] for seed in (7, 7, 8))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "zero"), (13, "thirteen"), (20, "twenty"), (42, "forty-two"), (99, "ninety-nine")],
)
def test_numbers_are_written_in_english(number: int, words: str) -> None:
    assert number_in_words(number) == words

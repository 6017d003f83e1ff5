"""A grammar says which tokens may follow, as a function of those so far."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from broker.work import Sampling
from gateway.constraints import json_grammar
from gateway.tools.forced import Callee, literal
from gateway.tools.hermes import Hermes
from gateway.tools.optional import text_or_calls
from nodes.grammar import Grammar, GrammarError, Vocabulary
from nodes.grammars import GrammarMaker
from nodes.sampler import SamplingError, choose
from tests.support.checkpoints import BYTE_OFFSET, EOS_ID, write_tokenizer
from tests.support.json_schemas import random_answer, text_of

VOCAB = 263
AB = 'start: "ab" "c"?'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return (folder / "tokenizer.json").read_bytes()


@pytest.fixture(scope="module")
def vocabulary(tokenizer: bytes) -> Vocabulary:
    return Vocabulary(tokenizer, (EOS_ID,))


def ids_of(text: str) -> list[int]:
    return [BYTE_OFFSET + byte for byte in text.encode()]


def allowed(grammar: Grammar, text: str) -> str:
    """Return what may follow a text: characters, and $ for the end."""
    found = np.flatnonzero(grammar.allowed(ids_of(text), VOCAB)).tolist()
    return "".join("$" if i == EOS_ID else chr(i - BYTE_OFFSET) for i in found)


def test_only_what_the_grammar_says_may_follow_and_the_end_only_where_it_is_complete(
    vocabulary: Vocabulary,
) -> None:
    grammar = vocabulary.grammar(AB, (EOS_ID,))
    assert [allowed(grammar, text) for text in ("", "a", "ab", "abc")] == ["a", "b", "$c", "$"]


def test_every_end_token_may_end_an_answer(vocabulary: Vocabulary) -> None:
    grammar = vocabulary.grammar(AB, (EOS_ID, 0, 999))
    ends = np.flatnonzero(grammar.allowed(ids_of("abc"), VOCAB)).tolist()
    assert ends == [0, EOS_ID]


def test_a_grammar_follows_tokens_that_are_taken_back(vocabulary: Vocabulary) -> None:
    """As those that were proposed and not accepted: the same as if they had never been."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "a": {"type": "string"},
            "b": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    text = json_grammar(schema)
    rng = np.random.default_rng(5)
    answers = [random_answer(vocabulary, text, rng, max_tokens=60)[:-1] for _ in range(8)]
    moving = vocabulary.grammar(text, (EOS_ID,))
    for answer in answers:
        for _ in range(12):
            ids = answer[: int(rng.integers(len(answer) + 1))]
            fresh = vocabulary.grammar(text, (EOS_ID,)).allowed(ids, VOCAB)
            assert np.array_equal(moving.allowed(ids, VOCAB), fresh), text_of(ids)


def test_a_call_amid_text_is_taken_back_too(vocabulary: Vocabulary) -> None:
    callee = Callee("add", {"properties": {"a": {"type": "integer"}}})
    text = text_or_calls(Hermes(), [callee], literal, "<[1]>")
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 12}}\n</tool_call>'
    answer = [*ids_of(f"So < {call} and"), 1, *ids_of(f"é {call}\nbye")]
    rng = np.random.default_rng(6)
    moving = vocabulary.grammar(text, (EOS_ID,))
    for end in rng.integers(len(answer) + 1, size=60).tolist():
        fresh = vocabulary.grammar(text, (EOS_ID,)).allowed(answer[:end], VOCAB)
        assert np.array_equal(moving.allowed(answer[:end], VOCAB), fresh), text_of(answer[:end])
    assert moving.allowed(answer, VOCAB)[EOS_ID]


def test_an_answer_that_its_grammar_does_not_allow_is_an_error(vocabulary: Vocabulary) -> None:
    grammar = vocabulary.grammar(AB, (EOS_ID,))
    with pytest.raises(GrammarError):
        grammar.allowed(ids_of("ax"), VOCAB)


@pytest.mark.parametrize(
    "make",
    [
        lambda good: Vocabulary(b'{"version": "1.0"}', (EOS_ID,)),
        lambda good: Vocabulary(good, (EOS_ID,)).grammar("start: nowhere", (EOS_ID,)),
    ],
    ids=["tokenizer", "grammar"],
)
def test_what_cannot_be_used_is_an_error(tokenizer: bytes, make: Callable[[bytes], object]) -> None:
    with pytest.raises(GrammarError, match="cannot be used"):
        make(tokenizer)


def test_the_tokenizer_is_read_with_the_first_grammar_and_again_only_if_that_failed(
    tokenizer: bytes,
) -> None:
    answers: list[bytes | Exception] = [OSError("no way there"), tokenizer]
    asked: list[object] = []

    def read() -> bytes:
        asked.append(answers[0])
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    maker = GrammarMaker(read, beside=lambda work: work())
    assert asked == []
    sampling = Sampling(grammar=AB, eos_token_ids=(EOS_ID,))
    with pytest.raises(OSError, match="no way there"):
        maker.make(sampling).result()
    made = [maker.make(sampling).result() for _ in range(2)]

    assert len(asked) == 2
    assert [allowed(grammar, "") for grammar in made] == ["a", "a"]


def test_a_grammar_is_made_beside_the_caller(tokenizer: bytes) -> None:
    waiting: list[Callable[[], None]] = []
    maker = GrammarMaker(lambda: tokenizer, beside=waiting.append)
    made = maker.make(Sampling(grammar=AB, eos_token_ids=(EOS_ID,)))
    assert not made.done()
    waiting.pop()()
    assert allowed(made.result(), "a") == "b"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_chosen_whatever_their_logits(temperature: float) -> None:
    logits = torch.tensor([9.0, 1.0, 8.0, 2.0])
    flags = np.array([False, True, False, True])
    chosen = {
        choose(logits, Sampling(seed=s, temperature=temperature), (), (), 7, flags)
        for s in range(50)
    }
    assert chosen == ({1, 3} if temperature else {3})


def test_the_choice_among_allowed_tokens_is_that_of_a_model_with_no_others() -> None:
    """Top-k and top-p count what is left, and the noise of a token is its own."""
    logits = torch.randn(64, generator=torch.Generator().manual_seed(3))
    flags = np.arange(64) % 3 == 0
    ruled_out = logits.masked_fill(~torch.from_numpy(flags), -torch.inf)
    for seed in range(40):
        sampling = Sampling(temperature=0.9, top_k=8, top_p=0.7, seed=seed)
        assert choose(logits, sampling, (), (), 5, flags) == choose(ruled_out, sampling, (), (), 5)


def test_nothing_left_to_choose_is_an_error() -> None:
    with pytest.raises(SamplingError, match="no token to choose from"):
        choose(torch.zeros(4), Sampling(), (), (), 0, np.zeros(4, np.bool_))


def test_a_vocabulary_may_be_smaller_or_larger_than_the_logits(vocabulary: Vocabulary) -> None:
    grammar = vocabulary.grammar("start: /(?s:.)/", (EOS_ID,))
    assert len(grammar.allowed([], 300)) == 300
    assert not grammar.allowed([], 300)[259:].any()
    assert len(grammar.allowed([], 100)) == 100


def test_the_tokenizer_of_a_checkpoint_is_one(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    vocabulary = Vocabulary((tmp_path / "tokenizer.json").read_bytes(), (EOS_ID,))
    assert allowed(vocabulary.grammar('start: "é"', (EOS_ID,)), "") == "\xc3"

"""Which tokens may come next by a grammar: a function of the grammar and of the ids so far.

The node's one place for llguidance. Nothing is kept that could not be computed again from the
ids, so a grammar follows an answer that goes on after a failure, and one of which tokens are
taken back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

Allowed = NDArray[np.bool_]

_REMEMBERED_GRAMMARS: Final = 32
# Errors go to clients; the state of the parser is of no use to them.
_LIMITS: Final = LLParserLimits(verbose_errors=False)


class GrammarError(ValueError):
    """The answer cannot go on by its grammar; the message says why."""


class Vocabulary:
    """The tokens of a tokenizer as bytes, as grammars read them.

    Takes about a second of a core for 128,000 tokens (`benchmarks/grammar.py`).

    Args:
        tokenizer_json: The content of the file.

    Raises:
        GrammarError: The tokenizer's tokens are not known as bytes.
    """

    def __init__(self, tokenizer_json: bytes, eos_token_ids: Sequence[int]) -> None:
        try:
            self._tokens = LLTokenizer(tokenizer_json.decode(), eos_token=list(eos_token_ids))
        except Exception as error:  # the Rust side raises many kinds
            raise GrammarError(f"the tokenizer cannot be used with grammars: {error}") from error
        self._grammars: OrderedDict[str, LLMatcher] = OrderedDict()

    def grammar(self, text: str, eos_token_ids: Sequence[int]) -> Grammar:
        """Return a grammar at its beginning; `GrammarError` if it is none."""
        known = self._grammars.pop(text, None)
        if known is None:
            known = LLMatcher(
                self._tokens, LLMatcher.grammar_from_lark(text), log_level=0, limits=_LIMITS
            )
            if known.is_error():
                raise GrammarError(f"the grammar cannot be used: {known.get_error()}")
        self._grammars[text] = known
        if len(self._grammars) > _REMEMBERED_GRAMMARS:
            self._grammars.popitem(last=False)
        return Grammar(known.deep_copy(), eos_token_ids)


class Grammar:
    """One answer's way through a grammar."""

    def __init__(self, matcher: LLMatcher, eos_token_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._eos_token_ids = tuple(eos_token_ids)
        self._taken: list[int] = []

    def allowed(self, generated_ids: Sequence[int], vocab_size: int) -> Allowed:
        """Return which token ids may follow an answer, (vocab_size,).

        End tokens may where the answer is complete, and nothing else may where it must end.

        Raises:
            GrammarError: The answer is none of this grammar, or took too much to follow.
        """
        self._follow(list(generated_ids))
        allowed = np.zeros(vocab_size, np.bool_)
        if not self._matcher.is_stopped():
            words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            bits = np.unpackbits(words, count=min(vocab_size, 8 * len(words)), bitorder="little")
            allowed[: len(bits)] = bits
        self._check()
        ends = [token_id for token_id in self._eos_token_ids if token_id < vocab_size]
        allowed[ends] = self._matcher.is_accepting()
        return allowed

    def _follow(self, ids: list[int]) -> None:
        """Take tokens in, and back, until they are ``ids``."""
        num_same = len(self._taken)
        if ids[:num_same] != self._taken:
            pairs = zip(ids, self._taken, strict=False)
            num_same = next((n for n, (a, b) in enumerate(pairs) if a != b), len(ids))
            self._matcher.rollback(len(self._taken) - num_same)
        self._taken = ids
        new = ids[num_same:]
        if new and not self._matcher.consume_tokens(new):
            self._check()
            raise GrammarError("a token of the answer is not one that its grammar allows")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the grammar cannot be followed: {self._matcher.get_error()}")

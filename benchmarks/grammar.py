"""What a grammar costs a node that chooses tokens: the tokenizer once, a grammar, each token.

    python -m benchmarks.grammar [--vocabulary 128000] [--answers 40] [--json FILE]

Answers are chosen at random among the tokens that random schemas allow, so they are full of odd
strings and numbers. Times are those of a core, of one thread. A token's grammar is following the
last one and marking all that may come next; choosing among these is beside choosing among all.
``text_ms`` is a token's grammar in text of a model that is free to make a strict call.
"""

import argparse
import json
import random
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.here import context
from broker.work import Sampling
from fog.made_tokenizer import EOS_ID, make_tokenizer
from gateway.constraints import grammar_problem, json_grammar
from gateway.tools.forced import Callee, literal
from gateway.tools.hermes import Hermes
from gateway.tools.optional import text_or_calls
from nodes.grammar import Grammar, Vocabulary
from nodes.sampler import choose
from tests.support.json_schemas import random_schema


def measured(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what work returns, and its seconds on a core."""
    began = time.process_time()
    found = work()
    return found, time.process_time() - began


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Return median, 99th percentile and largest."""
    shares = np.percentile(np.array(seconds) * 1e3, [50, 99, 100])
    return dict(zip(("p50", "p99", "most"), np.round(shares, 3).tolist(), strict=True))


def resident_mb() -> float:
    """Return the most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass
class Tokens:
    """Seconds of each token: of its grammar, of choosing among what that leaves, and among all."""

    grammar: list[float] = field(default_factory=list)
    choice: list[float] = field(default_factory=list)
    free_choice: list[float] = field(default_factory=list)

    def answer(self, grammar: Grammar, seed: int, vocab_size: int, draw: torch.Generator) -> None:
        """Choose the tokens of one answer."""
        sampling = Sampling(temperature=0.8, top_p=0.95, seed=seed, eos_token_ids=(EOS_ID,))
        ids: list[int] = []
        while len(ids) < 100 and EOS_ID not in ids:
            logits = torch.randn(vocab_size, generator=draw)
            chosen = partial(choose, logits, sampling, (), ids, len(ids))
            flags, seconds = measured(partial(grammar.allowed, ids, vocab_size))
            self.grammar.append(seconds)
            self.free_choice.append(measured(chosen)[1])
            token, seconds = measured(partial(chosen, flags))
            self.choice.append(seconds)
            ids.append(token)


def text_tokens(vocabulary: Vocabulary, tokenizer: Tokenizer, vocab_size: int) -> list[float]:
    """Return the seconds of each token of text in which a strict call may begin."""
    callee = Callee("add", {"properties": {"of": {"items": {"type": "integer"}}}})
    rules = text_or_calls(Hermes(), [callee], literal, others="<[3-5]>")
    grammar = vocabulary.grammar(rules, (EOS_ID,))
    ids = tokenizer.encode("Is a < b, and what is that <b>sum</b> of theirs? " * 8).ids
    return [measured(partial(grammar.allowed, ids[:end], vocab_size))[1] for end in range(len(ids))]


def run(vocab_size: int, num_answers: int) -> dict[str, Any]:
    """Measure; see the module."""
    tokenizer = make_tokenizer(vocab_size)
    text = tokenizer.to_str().encode()
    before = resident_mb()
    vocabulary, seconds = measured(lambda: Vocabulary(text, (EOS_ID,)))
    found: dict[str, Any] = {
        "vocabulary": vocab_size,
        "tokenizer_seconds": round(seconds, 2),
        "tokenizer_mb": round(resident_mb() - before),
    }
    rng, draw = random.Random(3), torch.Generator().manual_seed(3)
    checks, makes, tokens = [], [], Tokens()
    for seed in range(num_answers):
        rules = json_grammar(random_schema(rng))
        checks.append(measured(partial(grammar_problem, rules))[1])
        grammar, seconds = measured(partial(vocabulary.grammar, rules, (EOS_ID,)))
        makes.append(seconds)
        tokens.answer(grammar, seed, vocab_size, draw)
    return found | {
        "tokens": len(tokens.grammar),
        "check_ms": milliseconds(checks),
        "make_ms": milliseconds(makes),
        "grammar_ms": milliseconds(tokens.grammar),
        "text_ms": milliseconds(text_tokens(vocabulary, tokenizer, vocab_size)),
        "choice_ms": milliseconds(tokens.choice),
        "free_choice_ms": milliseconds(tokens.free_choice),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--answers", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = context("llguidance", "torch") | run(options.vocabulary, options.answers)
    print(json.dumps(found, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()

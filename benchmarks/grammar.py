"""What a grammar costs a node that chooses tokens: the tokenizer once, a grammar, each token.

    python -m benchmarks.grammar [--vocabulary 128000] [--answers 40] [--json FILE]

Answers are chosen at random among the tokens that random schemas allow, so they are full of odd
strings and numbers. A token's time is that of following the last one, of the flags of all tokens,
and of choosing one of them, beside the time of choosing one without a grammar.
"""

import argparse
import json
import random
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.here import context
from broker.work import Sampling
from fog.made_tokenizer import EOS_ID, make_tokenizer
from gateway.constraints import grammar_problem, json_grammar
from nodes.grammar import Grammar, Vocabulary
from nodes.sampler import choose
from tests.support.json_schemas import random_schema


def measured(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what work returns, and its seconds."""
    began = time.perf_counter()
    found = work()
    return found, time.perf_counter() - began


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Return median, 99th percentile and largest."""
    shares = np.percentile(np.array(seconds) * 1e3, [50, 99, 100])
    return dict(zip(("p50", "p99", "most"), np.round(shares, 3).tolist(), strict=True))


def resident_mb() -> float:
    """Return the most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def token_seconds(
    grammar: Grammar, seed: int, vocab_size: int, draw: torch.Generator
) -> tuple[list[float], list[float]]:
    """Return the seconds of each token of an answer, with its grammar and without."""
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=seed, eos_token_ids=(EOS_ID,))
    constrained, free = [], []
    ids: list[int] = []
    while len(ids) < 100 and EOS_ID not in ids:
        logits = torch.randn(vocab_size, generator=draw)
        position = len(ids)
        free.append(measured(partial(choose, logits, sampling, (), ids, position))[1])
        flags, following = measured(partial(grammar.allowed, ids, vocab_size))
        token, choosing = measured(partial(choose, logits, sampling, (), ids, position, flags))
        constrained.append(following + choosing)
        ids.append(token)
    return constrained, free


def run(vocab_size: int, num_answers: int) -> dict[str, Any]:
    """Measure; see the module."""
    tokenizer = make_tokenizer(vocab_size).to_str().encode()
    before = resident_mb()
    vocabulary, seconds = measured(lambda: Vocabulary(tokenizer, (EOS_ID,)))
    found: dict[str, Any] = {
        "vocabulary": vocab_size,
        "tokenizer_seconds": round(seconds, 2),
        "tokenizer_mb": round(resident_mb() - before),
    }
    rng, draw = random.Random(3), torch.Generator().manual_seed(3)
    checks, makes, constrained, free = [], [], [], []
    for seed in range(num_answers):
        text = json_grammar(random_schema(rng))
        checks.append(measured(partial(grammar_problem, text))[1])
        grammar, seconds = measured(partial(vocabulary.grammar, text, (EOS_ID,)))
        makes.append(seconds)
        with_it, without = token_seconds(grammar, seed, vocab_size, draw)
        constrained += with_it
        free += without
    return found | {
        "tokens": len(constrained),
        "check_ms": milliseconds(checks),
        "make_ms": milliseconds(makes),
        "token_ms": milliseconds(constrained),
        "token_without_ms": milliseconds(free),
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

"""Every family with all that saves work at once, against transformers.

Prefill and decode replicas are cut differently, chats go on from the KV that their last turn
left, proposed ids go round, and strangers share every batch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
import torch

from broker.plan import Role
from broker.work import Sampling
from tests.support.caching_fog import CachingFog
from tests.support.checkpoints import FAMILIES, random_tensors, write_checkpoint
from tests.support.oracle import Oracle, Reference
from tests.support.pipeline import make_replica
from tests.support.stages import MemoryTensors
from tests.support.ties import assert_same_tokens

CHUNK: Final = 16
ANSWER: Final = 24
# Longer than every window, and not on the grid.
OPENINGS: Final[Mapping[str, int]] = {"handed over": 64, "stays": 55}
MORE: Final = 9
STRANGER: Final = 21
# Answers of few tokens repeat themselves, and what is proposed comes true in part.
FEW: Final = (5, 9, 40)
BIAS: Final = 100.0


def said(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 259) for _ in range(length)]


class Talk:
    """Two chats, one over replicas that are cut differently, and a stranger at each turn."""

    def __init__(self, family: str) -> None:
        # In two, three and five stages.
        prefill = make_replica((2, 5), ("a", "b"), Role.PREFILL)
        decode = make_replica((1, 3, 5), ("c", "d", "e"), Role.DECODE)
        both = make_replica((1, 2, 3, 4, 5), ("f", "g", "h", "i", "j"), Role.BOTH)
        config = FAMILIES[family]
        self.fog = CachingFog(
            config,
            MemoryTensors(random_tensors(config)),
            [prefill, decode, both],
            chunk_tokens=CHUNK,
        )
        self._routes = {"handed over": (prefill, decode), "stays": (both, both)}

    def turn(self, number: int, prompts: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Ask all at once; return the answers when everybody has heard of their ends."""
        for name, ids in prompts.items():
            prefill, decode = self._routes[name]
            sampling = Sampling(logit_bias=dict.fromkeys(FEW, BIAS), ignore_eos=True)
            for asked, who in ((ids, name), (said(STRANGER, number), f"stranger of {name}")):
                self.fog.ask(
                    f"{who} {number}", asked, prefill, decode,
                    max_tokens=ANSWER, sampling=sampling,
                )  # fmt: skip
        self.fog.run()
        for _ in range(20):
            self.fog.step()
        return {name: self.fog.answers[f"{name} {number}"].tokens for name in prompts}


def greedy(oracle: Oracle, prompt: Sequence[int], answer: Sequence[int]) -> Reference:
    """Return what transformers says after the prompt and after each token of the answer."""
    logits = oracle.logits([*prompt, *answer])[len(prompt) - 1 : -1]
    bias = torch.zeros(logits.shape[1])
    bias[list(FEW)] = BIAS
    largest, ids = (logits + bias).topk(2)
    return Reference(ids[:, 0].tolist(), (largest[:, 0] - largest[:, 1]).tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_kv_and_proposed_ids_give_the_tokens_of_transformers(
    family: str, tmp_path: Path
) -> None:
    oracle = Oracle(write_checkpoint(tmp_path, family))
    talk = Talk(family)
    first = {name: said(length, length) for name, length in OPENINGS.items()}

    answers = talk.turn(1, first)
    second = {name: [*ids, *answers[name], *said(MORE, 7)] for name, ids in first.items()}
    talk.turn(2, second)

    for name, answer in talk.fog.answers.items():
        reference = greedy(oracle, answer.prompt_ids, answer.tokens)
        assert_same_tokens(answer.tokens, reference.tokens, reference.gaps, f"{family} {name}")
    kept = {name: length // CHUNK * CHUNK for name, length in OPENINGS.items()}
    assert {name: talk.fog.cached[f"{name} 2"] for name in kept} == kept
    assert talk.fog.held["handed over 2"] == kept["handed over"]
    for replica in talk.fog.replicas[1:]:
        assert talk.fog.devices[replica.stages[0].device].speculated.accepted > 0
    assert not talk.fog.rejected

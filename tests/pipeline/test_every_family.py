"""Every family with all that saves work at once, against transformers.

Prefill and decode replicas are cut differently, chats go on from the KV that their last turn
left, proposed ids go round, and strangers share every batch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
ANSWER: Final = 20
MORE: Final = 9
# Rotations alone, which change nothing of what is kept or proposed; others have as much of them.
ROTATIONS: Final = ("llama_linear", "llama_yarn", "llama_dynamic")
# Answers of few tokens repeat themselves, and what is proposed comes true in part.
FEW: Final = (5, 9, 40)
BIAS: Final = 100.0


@dataclass(frozen=True)
class Chat:
    """Two turns of somebody, a stranger to the others.

    Attributes:
        opening: Ids of the first turn, more than every window has.
        is_free: Whether all tokens are to choose from, which shows smaller errors.
        is_handed_over: Whether other devices decode than prefill.
    """

    opening: int
    is_free: bool
    is_handed_over: bool

    @property
    def bias(self) -> dict[int, float]:
        """What is added to logits."""
        return {} if self.is_free else dict.fromkeys(FEW, BIAS)


CHATS: Final[Mapping[str, Chat]] = {
    # On the grid: of what was sent, windows see as much from its end as the next turn does.
    "handed over": Chat(64, is_free=True, is_handed_over=True),
    "handed over, of few": Chat(48, is_free=False, is_handed_over=True),
    "stays": Chat(55, is_free=True, is_handed_over=False),
    "stays, of few": Chat(70, is_free=False, is_handed_over=False),
}


def said(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 259) for _ in range(length)]


def fog_of(family: str) -> CachingFog:
    """Return a fog of replicas in two, three and five stages."""
    replicas = [
        make_replica((2, 5), ("a", "b"), Role.PREFILL),
        make_replica((1, 3, 5), ("c", "d", "e"), Role.DECODE),
        make_replica((1, 2, 3, 4, 5), ("f", "g", "h", "i", "j"), Role.BOTH),
    ]
    config = FAMILIES[family]
    source = MemoryTensors(random_tensors(config))
    return CachingFog(config, source, replicas, chunk_tokens=CHUNK)


def take_turn(fog: CachingFog, number: int, prompts: Mapping[str, Sequence[int]]) -> None:
    """Ask all at once, and wait until everybody has heard of the ends."""
    prefill, decode, both = fog.replicas
    for name, ids in prompts.items():
        chat = CHATS[name]
        sampling = Sampling(logit_bias=chat.bias, ignore_eos=True)
        route = (prefill, decode) if chat.is_handed_over else (both, both)
        fog.ask(f"{name} {number}", ids, *route, max_tokens=ANSWER, sampling=sampling)
    fog.run()
    for _ in range(20):
        fog.step()


def greedy(
    oracle: Oracle, prompt: Sequence[int], answer: Sequence[int], bias: Mapping[int, float]
) -> Reference:
    """Return what transformers says after the prompt and after each token of the answer."""
    logits = oracle.logits([*prompt, *answer])[len(prompt) - 1 : -1]
    added = torch.zeros(logits.shape[1])
    added[[*bias]] = torch.tensor([*bias.values()])
    largest, ids = (logits + added).topk(2)
    return Reference(ids[:, 0].tolist(), (largest[:, 0] - largest[:, 1]).tolist())


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ROTATIONS])
def test_kept_kv_and_proposed_ids_give_the_tokens_of_transformers(
    family: str, tmp_path: Path
) -> None:
    fog = fog_of(family)
    first = {name: said(chat.opening, chat.opening) for name, chat in CHATS.items()}

    take_turn(fog, 1, first)
    answers = {name: fog.answers[f"{name} 1"].tokens for name in first}
    second = {name: [*ids, *answers[name], *said(MORE, 7)] for name, ids in first.items()}
    take_turn(fog, 2, second)

    oracle = Oracle(write_checkpoint(tmp_path, family))
    for number in (1, 2):
        for name, chat in CHATS.items():
            answer = fog.answers[f"{name} {number}"]
            reference = greedy(oracle, answer.prompt_ids, answer.tokens, chat.bias)
            assert_same_tokens(answer.tokens, reference.tokens, reference.gaps, f"{family} {name}")
    kept = {name: chat.opening // CHUNK * CHUNK for name, chat in CHATS.items()}
    assert {name: fog.cached[f"{name} 2"] for name in CHATS} == kept
    for name, chat in CHATS.items():
        assert fog.held[f"{name} 2"] == (kept[name] if chat.is_handed_over else 0)
    for replica in fog.replicas[1:]:
        assert fog.devices[replica.stages[0].device].speculated.accepted > 0
    assert not fog.rejected

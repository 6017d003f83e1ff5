"""One request in all the situations in which its answer must be the same.

Alone, split, among strangers, replayed: on random models of odd shapes and on the model in
the package.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from broker.architecture import parse_config
from broker.work import RequestKey, Sampling
from fog.model_choice import DEMO_MODEL
from nodes.executor import StageExecutor
from nodes.folder import FolderTensors
from nodes.sampler import choose
from nodes.slab import first_seen
from nodes.weights import LayerWeights
from tests.support.checkpoints import FAMILIES
from tests.support.stages import (
    build_stages,
    continue_answer,
    decode,
    fill_weights,
    load_weights,
    open_request,
    prefill,
)

KEY: Final = RequestKey("r", 0)
PROMPT: Final = tuple(3 + (7 * i) % 250 for i in range(45))
NUM_TOKENS: Final = 64
REPLAYED_FROM: Final = 50
TOKENS_IN_COMPANY: Final = 24
NUM_STRANGERS: Final = 15


@dataclass(frozen=True)
class Case:
    """A model in memory, and the options of its stages."""

    weights: LayerWeights
    kv_format: str = "float32"

    def stages(self, cuts: Sequence[int] = ()) -> list[StageExecutor]:
        """Return the stages of a replica that is cut at ``cuts``."""
        return build_stages(self.weights, cuts, kv_format=self.kv_format)


def random_case(family: str, weights: str, kv_format: str = "float32") -> Case:
    """Return a random model of a family of `FAMILIES`."""
    # Wide enough for the four-bit kernel, and no multiple of anything else.
    raw = {**FAMILIES[family], "hidden_size": 128, "intermediate_size": 384, "head_dim": 18}
    raw["moe_intermediate_size"] = 128
    return Case(load_weights(raw, weights=weights), kv_format)


def demo_case(weights: str) -> Case:
    """Return the model in the package."""
    config = parse_config(json.loads((DEMO_MODEL / "config.json").read_bytes()))
    return Case(fill_weights(LayerWeights(config, FolderTensors(DEMO_MODEL), weights)))


class Company:
    """The request among strangers, whose prompts have other lengths, in groups of 16 rows."""

    def __init__(self, stages: Sequence[StageExecutor]) -> None:
        self._stages = stages
        rng = random.Random(3)
        others = {
            RequestKey(f"stranger-{i}", 0): [rng.randrange(3, 259) for _ in range(3 + 11 * i)]
            for i in range(NUM_STRANGERS)
        }
        for key, prompt in others.items():
            open_request(stages, key, len(prompt) + TOKENS_IN_COMPANY)
            prefill(stages, key, prompt)
        self._keys = [*list(others)[:7], KEY, *list(others)[7:]]

    def prefill(self) -> torch.Tensor:
        """Take the request's prompt in; return the logits after it."""
        open_request(self._stages, KEY, len(PROMPT) + NUM_TOKENS)
        return prefill(self._stages, KEY, PROMPT)

    def decode(self, token_id: int) -> torch.Tensor:
        """Take in a token of the request, and one of each stranger; return its logits."""
        tokens = [token_id if key == KEY else 3 + (token_id * 31) % 250 for key in self._keys]
        return decode(self._stages, self._keys, tokens)[self._keys.index(KEY)]


@dataclass(frozen=True)
class Course:
    """An answer that nothing disturbed.

    Attributes:
        logits: (tokens, vocab), what each token was chosen by.
        kv: As `seen_kv` gives it when `REPLAYED_FROM` tokens are known.
    """

    tokens: list[int]
    logits: torch.Tensor
    kv: list[torch.Tensor]


def course(stages: Sequence[StageExecutor], sampling: Sampling) -> Course:
    """Return the answer token by token."""
    open_request(stages, KEY, len(PROMPT) + NUM_TOKENS)
    logits = [prefill(stages, KEY, PROMPT)]
    tokens: list[int] = []
    kv: list[torch.Tensor] = []
    for step in range(NUM_TOKENS):
        if step > 0:
            logits.append(decode(stages, [KEY], tokens[-1:])[0])
        tokens.append(choose(logits[-1], sampling, PROMPT, tokens, len(PROMPT) + step))
        if len(tokens) == REPLAYED_FROM:
            kv = seen_kv(stages)
    return Course(tokens, torch.stack(logits), kv)


def seen_kv(stages: Sequence[StageExecutor]) -> list[torch.Tensor]:
    """Return of every layer, (2, positions, heads, size), what later positions attend to."""
    found = []
    for stage in stages:
        slab, layers = stage.kv[KEY], stage.config.layers[stage.layers.start : stage.layers.end]
        for data, layer in zip(slab.data, layers, strict=True):
            found.append(data[:, first_seen(layer.window, slab.length) : slab.length].clone())
    return found


def replay(stages: Sequence[StageExecutor], known: Sequence[int]) -> torch.Tensor:
    """Take in prompt and known tokens but the last; return the logits (vocab) of that one."""
    open_request(stages, KEY, len(PROMPT) + NUM_TOKENS)
    prefill(stages, KEY, PROMPT)
    hidden = stages[0].embed(known[:-1])
    for stage in stages:
        hidden = stage.replay(KEY, hidden, len(PROMPT))
    return stages[-1].logits(hidden[-1:])[0]


def replayed(
    stages: Sequence[StageExecutor], expected: Sequence[int], sampling: Sampling
) -> list[int]:
    """Return the answer of stages that got to know it at its 50th token."""
    known = list(expected[:REPLAYED_FROM])
    replay(stages, known)
    return continue_answer(stages, KEY, PROMPT, known, NUM_TOKENS, sampling)

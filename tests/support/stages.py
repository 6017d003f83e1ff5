"""Executors of all stages of a model in one process, and requests through them.

No messages and no threads: what a replica computes, without how it is carried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from broker.architecture import ModelConfig, parse_config
from broker.plan import LayerRange
from broker.work import RequestKey, Sampling
from nodes.executor import StageExecutor
from nodes.sampler import choose
from nodes.weights import LayerWeights
from tests.support.checkpoints import random_tensors

CHUNK_TOKENS = 32


@dataclass
class MemoryTensors:
    """A source of weights that are in memory already; remembers who asked for what."""

    tensors: Mapping[str, torch.Tensor]
    asked: list[str] = field(default_factory=list)

    def load_tensor(self, name: str) -> torch.Tensor:
        self.asked.append(name)
        return self.tensors[name]


def cut_layers(num_layers: int, cuts: Sequence[int]) -> list[LayerRange]:
    """Return the ranges between 0, the cuts and ``num_layers``."""
    edges = [0, *cuts, num_layers]
    return [LayerRange(start, end) for start, end in pairwise(edges)]


def fill_weights(weights: LayerWeights) -> LayerWeights:
    """Load everything that the model has, and return ``weights``."""
    for layer in range(weights.config.num_layers):
        weights.add(layer)
    weights.add_embedding()
    weights.add_head()
    return weights


def load_weights(
    config: Mapping[str, Any], seed: int = 0, weights: str = "float32"
) -> LayerWeights:
    """Return all weights of a random checkpoint, without writing it."""
    source = MemoryTensors(random_tensors(config, seed))
    return fill_weights(LayerWeights(parse_config(config), source, weights))


def build_stages(
    weights: LayerWeights, cuts: Sequence[int] = (), kv_tokens: int = 4096, **options: Any
) -> list[StageExecutor]:
    """Return the stages of a replica that is cut at ``cuts``."""
    config: ModelConfig = weights.config
    ranges = cut_layers(config.num_layers, cuts)
    return [
        StageExecutor(
            config,
            layers,
            weights,
            embedding=layers is ranges[0],
            head=layers is ranges[-1],
            kv_tokens=kv_tokens,
            chunk_tokens=options.get("chunk_tokens", CHUNK_TOKENS),
            kv_format=options.get("kv_format", "float32"),
            kv_transfer=options.get("kv_transfer", "exact"),
        )
        for layers in ranges
    ]


def open_request(stages: Sequence[StageExecutor], key: RequestKey, num_tokens: int) -> None:
    """Reserve KV for the request at every stage."""
    for stage in stages:
        stage.open(key, num_tokens)


def prefill(
    stages: Sequence[StageExecutor], key: RequestKey, prompt_ids: Sequence[int]
) -> torch.Tensor:
    """Take a prompt through all stages in chunks on the grid; return the last row's logits."""
    step = stages[0].chunk_tokens
    for start in range(0, len(prompt_ids), step):
        hidden = stages[0].embed(prompt_ids[start : start + step])
        for stage in stages:
            hidden = stage.prefill(key, hidden, start)
    return stages[-1].logits(hidden[-1:])[0]


def decode(
    stages: Sequence[StageExecutor], keys: Sequence[RequestKey], token_ids: Sequence[int]
) -> torch.Tensor:
    """Take one token of each request through all stages; return logits (rows, vocab)."""
    hidden = stages[0].embed(token_ids)
    for stage in stages:
        hidden = stage.decode(keys, hidden)
    return stages[-1].logits(hidden)


def continue_answer(
    stages: Sequence[StageExecutor],
    key: RequestKey,
    prompt_ids: Sequence[int],
    generated_ids: Sequence[int],
    num_tokens: int,
    sampling: Sampling,
) -> list[int]:
    """Return the whole answer of ``num_tokens``; KV must have all but the last known token."""
    answer = list(generated_ids)
    while len(answer) < num_tokens:
        logits = decode(stages, [key], answer[-1:])[0]
        position = len(prompt_ids) + len(answer)
        answer.append(choose(logits, sampling, prompt_ids, answer, position))
    return answer


def generate(
    stages: Sequence[StageExecutor],
    prompt_ids: Sequence[int],
    num_tokens: int,
    sampling: Sampling | None = None,
    key: RequestKey | None = None,
) -> list[int]:
    """Return ``num_tokens`` tokens of one request alone; greedy unless told otherwise."""
    key, sampling = key or RequestKey("alone", 0), sampling or Sampling()
    open_request(stages, key, len(prompt_ids) + num_tokens)
    first = choose(prefill(stages, key, prompt_ids), sampling, prompt_ids, [], len(prompt_ids))
    answer = continue_answer(stages, key, prompt_ids, [first], num_tokens, sampling)
    for stage in stages:
        stage.release(key)
    return answer

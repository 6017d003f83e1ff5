"""A whole model in float64 on one machine: how far two tokens' scores are apart, really.

Where an answer in float32 differs from another one, the two tokens either scored alike, so that
the order of a sum decided, or one of the answers is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from broker.architecture import parse_config
from broker.plan import LayerRange
from broker.work import RequestKey, Sampling
from nodes.executor import StageExecutor
from nodes.folder import FolderTensors
from nodes.kv_cache import KvCache
from nodes.packing import REFERENCE
from nodes.sampler import scored
from nodes.weights import LayerWeights

_KV_TOKENS: Final = 1 << 16
_KEY: Final = RequestKey("replay", 0)


class _Executor(StageExecutor):
    """A stage whose KV is in float64 too."""

    def __init__(self, weights: LayerWeights, chunk_tokens: int) -> None:
        config = weights.config
        super().__init__(
            config,
            LayerRange(0, config.num_layers),
            weights,
            embedding=True,
            head=True,
            kv_tokens=_KV_TOKENS,
            chunk_tokens=chunk_tokens,
        )
        self._kv_dtype = torch.float64
        self.kv = KvCache(
            [layer.window for layer in config.layers],
            config.num_kv_heads,
            config.head_dim,
            _KV_TOKENS,
            torch.float64,
        )


class Replay:
    """Replays answers of a model.

    Args:
        folder: The model: ``config.json`` and ``*.safetensors``.
    """

    def __init__(self, folder: Path, chunk_tokens: int = 128) -> None:
        config = parse_config(json.loads((folder / "config.json").read_bytes()))
        weights = LayerWeights(config, FolderTensors(folder), REFERENCE)
        weights.add_embedding()
        for layer in range(config.num_layers):
            weights.add(layer)
        weights.add_head()
        self._executor = _Executor(weights, chunk_tokens)

    def gap(
        self,
        prompt_ids: Sequence[int],
        generated_ids: Sequence[int],
        sampling: Sampling,
        one: int,
        other: int,
    ) -> float:
        """Return how far the scores of two ids are apart as the next token; not negative.

        Infinite when one of them may not be chosen at all.
        """
        logits = self._logits([*prompt_ids, *generated_ids])
        position = len(prompt_ids) + len(generated_ids)
        ids, scores = scored(logits, sampling, prompt_ids, generated_ids, position)
        score = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        if one not in score or other not in score:
            return float("inf")
        return float(abs(score[one] - score[other]))

    def _logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        executor = self._executor
        executor.open(_KEY, len(token_ids))
        try:
            for start in range(0, len(token_ids), executor.chunk_tokens):
                chunk = token_ids[start : start + executor.chunk_tokens]
                hidden = executor.prefill(_KEY, executor.embed(chunk), start)
            return executor.logits(hidden[-1:])[0]
        finally:
            executor.release(_KEY)

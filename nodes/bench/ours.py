"""Our engine as the benchmark drives it: a whole model at one stage, no messages."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from broker.architecture import parse_config
from broker.plan import LayerRange
from broker.work import RequestKey
from nodes.decoder import Block
from nodes.executor import StageExecutor
from nodes.folder import FolderTensors
from nodes.kernels import choose_int8_kernel
from nodes.measure import CHUNK_TOKENS
from nodes.packed import Linear
from nodes.weights import HeadWeights, LayerWeights

Step = Callable[[], object]

_KV_TOKENS: Final = 1 << 20  # no limit: what is open at a time is the benchmark's choice


class OurEngine:
    """A whole model in one weight format.

    Attributes:
        load_seconds: What reading and packing took.
        weights: The weights in memory.
        executor: The stage that holds all of it.
    """

    def __init__(
        self, folder: Path, weights: str, threads: int, device: torch.device | None = None
    ) -> None:
        config = parse_config(json.loads((folder / "config.json").read_bytes()))
        kernel = choose_int8_kernel(None, threads) if weights in ("int8", "int4") else None
        start = time.perf_counter()
        store = LayerWeights(config, FolderTensors(folder), weights, device, kernel)
        store.add_embedding()
        for layer in range(config.num_layers):
            store.add(layer)
        store.add_head()
        self.load_seconds = time.perf_counter() - start
        self.weights = store
        self.executor = StageExecutor(
            config,
            LayerRange(0, config.num_layers),
            store,
            embedding=True,
            head=True,
            kv_tokens=_KV_TOKENS,
            chunk_tokens=CHUNK_TOKENS,
        )

    def prefill(self, num_tokens: int) -> Step:
        """Return a call that takes a whole prompt in and gives the last position's logits."""
        executor, key = self.executor, RequestKey("prompt", 0)
        ids = token_ids(num_tokens, executor.config.vocab_size)

        def run() -> torch.Tensor:
            executor.open(key, num_tokens)
            for start in range(0, num_tokens, CHUNK_TOKENS):
                chunk = ids[start : start + CHUNK_TOKENS]
                hidden = executor.prefill(key, executor.embed(chunk), start)
            executor.release(key)
            return executor.logits(hidden[-1:])

        return run

    def decode(self, batch: int, context: int) -> Step:
        """Return a call that makes one step of ``batch`` rows with ``context`` positions each."""
        executor = self.executor
        keys = [RequestKey(f"row-{row}", 0) for row in range(batch)]
        for key in keys:
            executor.release(key)  # of another batch
            executor.open(key, context + 1)
            executor.kv[key].data.normal_()
        ids = token_ids(batch, executor.config.vocab_size)

        def run() -> torch.Tensor:
            for key in keys:
                executor.set_length(key, context)
            return executor.logits(executor.decode(keys, executor.embed(ids)))

        return run

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return logits (n, vocab) after each of ``token_ids``."""
        executor, key = self.executor, RequestKey("text", 0)
        executor.open(key, len(token_ids))
        parts = []
        for start in range(0, len(token_ids), CHUNK_TOKENS):
            hidden = executor.embed(token_ids[start : start + CHUNK_TOKENS])
            parts.append(executor.logits(executor.prefill(key, hidden, start)))
        executor.release(key)
        return torch.cat(parts)

    def products(self, rows: int, head_rows: int) -> Step:
        """Return a call of a pass's kernels alone: the floor of its time."""
        return _in_turn([linear.bare(x) for linear, x in self._work(rows, head_rows)])

    def products_of_prompt(self, num_tokens: int) -> Step:
        """Return a call of the kernels alone of a prompt's chunks."""
        return _in_turn([self.products(*rows) for rows in _chunks(num_tokens)])

    def bytes_read(self, rows: int, head_rows: int) -> int:
        """Return the bytes of the matrices that a pass reads.

        Of a mixture, of the experts that so many rows are expected to choose.
        """
        return sum(linear.num_bytes for linear, _ in self._work(rows, head_rows))

    def bytes_of_prompt(self, num_tokens: int) -> int:
        """Return the bytes of the matrices that a prompt's chunks read, one after the other."""
        return sum(self.bytes_read(*rows) for rows in _chunks(num_tokens))

    def _work(self, rows: int, head_rows: int) -> list[tuple[Linear, torch.Tensor]]:
        """Return the matrices of a pass, each with rows like those that it multiplies."""
        weights, config = self.weights, self.weights.config

        def x(columns: int, rows: int = rows) -> torch.Tensor:
            return torch.randn(rows, columns, dtype=weights.dtype, device=weights.device)

        hidden, last = x(config.hidden_size), x(config.hidden_size, head_rows)
        attended = x(config.num_heads * config.head_dim)
        work: list[tuple[Linear, torch.Tensor]] = []
        for block in map(weights.block, weights.layers):
            assert isinstance(block, Block), "benchmarks are of families here"
            work += [(block.weights.qkv, hidden), (block.weights.output, attended)]
            work += block.weights.feed_forward.products(hidden)
        if head_rows:
            assert isinstance(weights.head, HeadWeights), "as with the blocks"
            work.append((weights.head.linear, last))
        return work


def _chunks(num_tokens: int) -> list[tuple[int, int]]:
    """Return rows of each chunk of a prompt, and those of them that go through the head."""
    ends = [*range(CHUNK_TOKENS, num_tokens, CHUNK_TOKENS), num_tokens]
    starts = range(0, num_tokens, CHUNK_TOKENS)
    return [(e - s, int(e == num_tokens)) for s, e in zip(starts, ends, strict=True)]


def _in_turn(steps: Sequence[Step]) -> Step:
    """Return a step that makes all of them, and keeps no result: new memory would cost time."""

    def run() -> None:
        for step in steps:
            step()

    return run


def token_ids(count: int, vocab_size: int) -> list[int]:
    """Return ids that mean nothing, always the same."""
    rng = np.random.default_rng(0)
    return [int(token) for token in rng.integers(3, vocab_size, count)]

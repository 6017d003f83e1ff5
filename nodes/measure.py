"""Times a reduced model on this device: some blocks, the embedding and a piece of the head.

Weights are made up in the right shapes, so nothing is downloaded; enough of them that they
do not stay in the processor's caches where those of a real stage would not. The executor that
serves requests is the one that is timed.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from broker.architecture import (
    LayerConfig,
    ModelConfig,
    block_bytes,
    block_tensors,
    context_limit,
    embedding_bytes,
    embedding_tensors,
    head_tensors,
)
from broker.control import DecodeTime, LayerTimes, PrefillTime
from broker.plan import LayerRange
from broker.work import RequestKey, Sampling
from nodes.calibration import Calibration
from nodes.executor import StageExecutor
from nodes.hardware import cpu_quota_cores
from nodes.kernels import Int8Kernel
from nodes.sampler import choose
from nodes.selftest import check_rows
from nodes.weights import LayerWeights

CHUNK_TOKENS: Final = 128
"""Chunk grid of prefill times; the plan's default."""

_BATCHES: Final = (1, 2, 4, 8, 16)
_CONTEXTS: Final = (64, 512)
_SHORT_PROMPTS: Final = (16, 64)
_MAX_PROMPT: Final = 512
# More than the caches of small devices, little enough for their memory.
_BLOCKS_BYTES: Final = 64 << 20
_MATRIX_BYTES: Final = 128 << 20
_MAX_REPETITIONS: Final = 7
# Below this share of a core something else ran in between, and wall time would say more of
# that than of the device.
_CONTENTION: Final = 0.8
# Sampling as most clients ask for it; greedy would leave out the noise.
_SAMPLING: Final = Sampling(temperature=1.0)


@dataclass(slots=True)
class _Stopwatch:
    """Times calls; knows when the budget is spent.

    Attributes:
        quota_cores: Cores that a container may use on average; None without a limit.
    """

    threads: int
    deadline: float
    quota_cores: float | None = None
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def is_spent(self) -> bool:
        return time.perf_counter() >= self.deadline

    def once(self, call: Callable[[], object]) -> float:
        wall, cpu = time.perf_counter(), time.thread_time()
        call()
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        self.wall_seconds += wall
        self.cpu_seconds += cpu
        if self.threads == 1 and self.quota_cores is not None and self.quota_cores < 1:
            # A short call runs at full speed and the pause comes later; what counts is the
            # speed that the device keeps up.
            return cpu / self.quota_cores
        # With one thread, the thread's CPU time is all there is to count. With several, torch
        # computes in threads that this clock does not see, and wall time must do.
        return cpu if self.threads == 1 and cpu < _CONTENTION * wall else wall

    def median(self, call: Callable[[], object]) -> float:
        """Return the median over up to `_MAX_REPETITIONS` calls, of which the first warms up."""
        first = self.once(call)
        times = [self.once(call) for _ in range(_repetitions(first)) if not self.is_spent]
        return statistics.median(times) if times else first


def _repetitions(seconds: float) -> int:
    return max(2, min(_MAX_REPETITIONS, int(0.02 / max(seconds, 1e-6))))


@dataclass(slots=True)
class _Samples:
    prefill: list[PrefillTime] = field(default_factory=list)
    decode: list[DecodeTime] = field(default_factory=list)

    def times(self) -> LayerTimes:
        return LayerTimes(prefill=self.prefill, decode=self.decode)


def measure(
    config: ModelConfig,
    weights: str,
    kv_format: str = "float32",
    *,
    threads: int = 1,
    budget_seconds: float = 1.0,
    kernel: Int8Kernel | None = None,
) -> Calibration:
    """Return the times of each part of ``config`` on this device.

    Args:
        config: The model.
        weights: Weight format.
        kv_format: Element type of KV.
        threads: Threads that torch uses.
        budget_seconds: After this, larger batches and prompts are left out; the first two of
            each are always measured.
        kernel: Multiplies int8 weights; None: any that is exact.

    Raises:
        DependentRowsError: A kernel's rows depend on their neighbours.
    """
    began = time.perf_counter()
    watch = _Stopwatch(threads, began, cpu_quota_cores())
    # Embedding and head are linear in the vocabulary, so a piece of it tells the whole; a model
    # that transformers computes has no pieces.
    rows = max(256, _MATRIX_BYTES * config.vocab_size // embedding_bytes(config, weights))
    rows = config.vocab_size if config.other else rows
    ranges, layers = _some_of_each_kind(config, weights)
    reduced = replace(config, vocab_size=min(config.vocab_size, rows), layers=layers)
    store = LayerWeights(reduced, _MadeUpTensors(reduced), weights, kernel=kernel)
    for layer in range(reduced.num_layers):
        store.add(layer)
    store.add_embedding()
    store.add_head()
    limit = context_limit(config)
    blocks: dict[str, LayerTimes] = {}
    for number, (kind, layer_range) in enumerate(ranges.items(), start=1):
        executor = StageExecutor(
            reduced,
            layer_range,
            store,
            embedding=True,
            head=True,
            kv_tokens=max(_BATCHES) * (min(max(_CONTEXTS), limit) + 32) + _MAX_PROMPT + 32,
            chunk_tokens=min(CHUNK_TOKENS, limit),
            kv_format=kv_format,
        )
        check_rows(executor, weights)
        watch.deadline = began + budget_seconds * number / len(ranges)
        block = _Samples()
        _time_decode(block, executor, watch, len(layer_range), limit)
        _time_prefill(block, executor, watch, len(layer_range), limit)
        blocks[kind] = block.times()
    embedding, head = _Samples(), _Samples()
    _time_ends(embedding, head, executor, watch, config.vocab_size / reduced.vocab_size, limit)
    return Calibration(
        blocks=blocks,
        embedding=embedding.times(),
        head=head.times(),
        chunk_tokens=executor.chunk_tokens,
        cpu_seconds_per_second=min(watch.cpu_seconds / max(watch.wall_seconds, 1e-9), 1.0)
        if threads == 1
        else 1.0,
    )


def _some_of_each_kind(
    config: ModelConfig, weights: str
) -> tuple[dict[str, LayerRange], tuple[LayerConfig, ...]]:
    """Return blocks to measure, those of a kind beside each other, and the range of each kind."""
    ranges: dict[str, LayerRange] = {}
    chosen: list[LayerConfig] = []
    for kind in dict.fromkeys(layer.kind for layer in config.layers):
        alike = [number for number, layer in enumerate(config.layers) if layer.kind == kind]
        count = math.ceil(_BLOCKS_BYTES / block_bytes(config, weights, alike[0]))
        start = len(chosen)
        chosen += [_in_floats(config.layers[number]) for number in alike[:count]]
        ranges[kind] = LayerRange(start, len(chosen))
    return ranges, tuple(chosen)


def _in_floats(layer: LayerConfig) -> LayerConfig:
    """Return a layer as a checkpoint in floats would have it: it is held the same way."""
    experts = layer.experts and replace(layer.experts, is_mxfp4=False)
    return replace(layer, experts=experts)


def _different_ids(count: int, executor: StageExecutor) -> list[int]:
    """Return ids that differ: equal rows would all take the same experts."""
    return [number % executor.config.vocab_size for number in range(count)]


def _time_decode(
    samples: _Samples, executor: StageExecutor, watch: _Stopwatch, num_blocks: int, limit: int
) -> None:
    contexts = sorted({min(context, limit - 1) for context in _CONTEXTS} - {0}) or [1]
    for batch in _BATCHES:
        if batch > 2 and watch.is_spent:
            return
        keys = [_open(executor, row, contexts[-1]) for row in range(batch)]
        hidden = executor.embed(_different_ids(batch, executor))
        for context in contexts:

            def step(
                keys: list[RequestKey] = keys,
                hidden: torch.Tensor = hidden,
                context: int = context,
            ) -> None:
                for key in keys:
                    executor.set_length(key, context - 1)
                executor.decode(keys, hidden)

            samples.decode.append(DecodeTime(batch, context, watch.median(step) / num_blocks))
        for key in keys:
            executor.release(key)


def _time_prefill(
    samples: _Samples, executor: StageExecutor, watch: _Stopwatch, num_blocks: int, limit: int
) -> None:
    chunk = executor.chunk_tokens
    longest = min(_MAX_PROMPT, limit)
    key = _open(executor, 0, longest)

    def run(start: int, num_tokens: int) -> float:
        hidden = executor.embed(_different_ids(num_tokens, executor))

        def once() -> None:
            executor.set_length(key, start)
            executor.prefill(key, hidden, start)

        return watch.median(once) / num_blocks

    for num_tokens in _SHORT_PROMPTS:
        if num_tokens < min(chunk, longest):
            samples.prefill.append(PrefillTime(num_tokens, run(0, num_tokens)))
    # Longer prompts are the sum of their chunks, each with what came before it in the KV.
    total = 0.0
    for start in range(0, longest - chunk + 1, chunk):
        if start and len(samples.prefill) >= 2 and watch.is_spent:
            break
        total += run(start, chunk)
        samples.prefill.append(PrefillTime(start + chunk, total))
    executor.release(key)


def _time_ends(
    embedding: _Samples,
    head: _Samples,
    executor: StageExecutor,
    watch: _Stopwatch,
    head_scale: float,
    limit: int,
) -> None:
    context = min(_CONTEXTS[0], limit)
    for batch in _BATCHES:
        if batch > 2 and watch.is_spent:
            break
        ids = list(range(batch))
        hidden = executor.embed(ids)

        def finish(hidden: torch.Tensor = hidden) -> None:
            for row in executor.logits(hidden):
                choose(row, _SAMPLING, (0,), (), context)

        look_up = watch.median(lambda ids=ids: executor.embed(ids))  # type: ignore[misc]
        embedding.decode.append(DecodeTime(batch, context, look_up))
        head.decode.append(DecodeTime(batch, context, watch.median(finish) * head_scale))
    # One row of a prompt goes through the head, however long it is.
    head.prefill.append(PrefillTime(1, head.decode[0].seconds))
    for num_tokens in (1, min(executor.chunk_tokens, limit)):
        prompt = [0] * num_tokens
        seconds = watch.median(lambda prompt=prompt: executor.embed(prompt))  # type: ignore[misc]
        embedding.prefill.append(PrefillTime(num_tokens, seconds))


def _open(executor: StageExecutor, number: int, num_tokens: int) -> RequestKey:
    key = RequestKey(f"measure-{number}", 0)
    executor.open(key, num_tokens)
    # Memory that was never written may hold numbers with which arithmetic is slow.
    executor.kv[key].data.fill_(0.01)
    return key


class _MadeUpTensors:
    """Tensors of the right shapes with harmless values, made at the speed of a copy."""

    def __init__(self, config: ModelConfig) -> None:
        groups = [embedding_tensors(config), head_tensors(config)]
        groups += [block_tensors(config, layer) for layer in range(config.num_layers)]
        self._shapes = {spec.name: spec.shape for group in groups for spec in group.values()}
        # Small, so that hidden states stay numbers through any depth of blocks.
        self._pattern = 0.02 * torch.randn(4093, generator=torch.Generator().manual_seed(0))

    def load_tensor(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape)
        values = torch.empty(shape)
        # Whole copies of the pattern, then what is left of it.
        flat, length = values.view(-1), len(self._pattern)
        whole = flat.numel() // length * length
        flat[:whole].view(-1, length).copy_(self._pattern.expand(whole // length, length))
        flat[whole:] = self._pattern[: flat.numel() - whole]
        return values

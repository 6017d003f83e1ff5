"""One stage: a contiguous range of layers, run on rows of many requests.

Knows nothing of messages, replicas or sampling. Weights are shared with other executors of
the device, KV is not. All methods are called from one thread. A method that raises leaves
every request's length as it was, so the caller may try its rows one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial

import torch

from broker.architecture import KV_FORMATS, ModelConfig
from broker.codec import Buffer
from broker.placement import KV_BLOCK_TOKENS
from broker.plan import LayerRange
from broker.work import RequestKey, TensorMeta
from nodes.decoder import Scores, attend_chunk, attend_position, chunk_mask
from nodes.kv_cache import KvCache
from nodes.kv_wire import kv_wire
from nodes.rotary import RotaryTable
from nodes.slab import Slab, first_seen
from nodes.tensors import DTYPES, meta_of, to_bytes
from nodes.weights import LayerWeights

ByLayer = Generator[None, None, torch.Tensor]
"""A computation that pauses after each layer and returns its result at the end."""

# Of a layer by its index within the stage: as `Attend`.
_Attention = Callable[[int, torch.Tensor, torch.Tensor, Scores], torch.Tensor]

# Keys and values, each (1, kv_heads, length, head_dim), that a position of one layer sees.
_Sight = tuple[torch.Tensor, torch.Tensor]


class StageExecutor:
    """Runs the layers of one stage.

    Args:
        config: The model.
        layers: The stage's layers, all of them in ``weights``.
        weights: The device's weights.
        embedding: Whether token ids enter here.
        head: Whether logits leave here.
        kv_tokens: Hard limit of KV positions of all requests together.
        chunk_tokens: Grid on which prompts are cut; equal in the whole fog.
        kv_format: Element type of KV in memory.
        kv_transfer: How it travels to another replica.

    Attributes:
        kinds: Of each block, as profiles name them.
        rounds_kv: Whether KV of another replica is not what would be computed here.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: LayerRange,
        weights: LayerWeights,
        *,
        embedding: bool,
        head: bool,
        kv_tokens: int,
        chunk_tokens: int,
        kv_format: str = "float32",
        kv_transfer: str = "exact",
    ) -> None:
        if layers.end > config.num_layers:
            raise ValueError(f"layers {layers} of a model with {config.num_layers}")
        if kv_format not in KV_FORMATS:
            known = ", ".join(KV_FORMATS)
            raise ValueError(f"KV format {kv_format!r} is unknown; use one of {known}")
        self.config, self.layers = config, layers
        self.embedding, self.head = embedding, head
        self.chunk_tokens = chunk_tokens
        self._device, self._dtype = weights.device, weights.dtype
        self._blocks = [weights.block(layer) for layer in range(layers.start, layers.end)]
        self._embedding = weights.embedding if embedding else None
        self._head = weights.head if head else None
        self._kv_dtype = DTYPES[kv_format]
        self._wire = kv_wire(kv_transfer, self._kv_dtype)
        self.rounds_kv = kv_transfer != "exact"
        self._layers = config.layers[layers.start : layers.end]
        self.kinds = tuple(layer.kind for layer in self._layers)
        self._rotary = {
            rope: RotaryTable(rope, config.head_dim, self._dtype, self._device)
            for rope in dict.fromkeys(layer.rope for layer in self._layers)
            if rope is not None
        }
        self._windows = frozenset(layer.window for layer in self._layers)
        self.kv = KvCache(
            [layer.window for layer in self._layers],
            config.num_kv_heads,
            config.head_dim,
            kv_tokens,
            self._kv_dtype,
            self._device,
            [layer.window for layer in config.layers],
        )

    # --- requests ---------------------------------------------------------------------

    def open(self, key: RequestKey, num_tokens: int, most_tokens: int = 0) -> None:
        """Reserve KV for ``num_tokens`` positions of ``most_tokens``; raises as `KvCache.open`."""
        self.kv.open(key, num_tokens, most_tokens)

    def reserve(self, key: RequestKey, num_tokens: int) -> None:
        """Grow the reservation to ``num_tokens`` positions; `KvFullError` beyond the limit."""
        self.kv.reserve(key, num_tokens)

    def release(self, key: RequestKey) -> None:
        """Free the request's KV; nothing happens when it has none."""
        self.kv.release(key)

    def has(self, key: RequestKey) -> bool:
        """Whether the request is open here."""
        return key in self.kv

    def length(self, key: RequestKey) -> int:
        """Return how many positions of the request every layer has."""
        return self.kv[key].length

    @property
    def kv_entry_bytes(self) -> int:
        """Bytes in which one position of one layer travels, keys and values."""
        return 2 * self.config.num_kv_heads * self._wire.row_bytes(self.config.head_dim)

    @property
    def used_tokens(self) -> int:
        """KV positions reserved now, whole blocks."""
        return self.kv.used_tokens

    # --- forward ----------------------------------------------------------------------

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return hidden states (n, hidden) of token ids.

        Raises:
            ValueError: An id is outside the vocabulary, or the stage has no embedding.
        """
        if self._embedding is None:
            raise ValueError("this stage has no embedding")
        for token_id in token_ids:
            if not 0 <= token_id < self.config.vocab_size:
                raise ValueError(
                    f"token id {token_id} is outside the vocabulary of {self.config.vocab_size}"
                )
        ids = torch.tensor(token_ids, dtype=torch.long, device=self._device)
        hidden = self._embedding(ids)
        scale = self.config.scales.embedding
        # Rounded first, as the models are trained.
        return hidden if scale == 1 else hidden * torch.tensor(scale, dtype=hidden.dtype)

    def prefill(self, key: RequestKey, hidden: torch.Tensor, start_position: int) -> torch.Tensor:
        """Run `prefill_by_layer` without a pause."""
        return _run_out(self.prefill_by_layer(key, hidden, start_position))

    def replay(self, key: RequestKey, hidden: torch.Tensor, start_position: int) -> torch.Tensor:
        """Run `replay_by_layer` without a pause."""
        return _run_out(self.replay_by_layer(key, hidden, start_position))

    @torch.inference_mode()
    def prefill_by_layer(
        self, key: RequestKey, hidden: torch.Tensor, start_position: int
    ) -> ByLayer:
        """Run one chunk of a prompt, (n, hidden) to (n, hidden), and append its KV.

        Other requests may run while it pauses. The length grows at the end, so a chunk that
        is given up half-way left nothing that counts.

        Raises:
            ValueError: The chunk is not on the grid, or does not begin at the length.
            KvFullError: The request has no room for it and cannot get it.
        """
        if start_position % self.chunk_tokens or not 0 < len(hidden) <= self.chunk_tokens:
            raise ValueError(
                f"a chunk of {len(hidden)} positions at {start_position} is not on the grid "
                f"of {self.chunk_tokens}; all stages must use one chunk size"
            )
        slab, end = self._append_to(key, hidden, start_position)
        sights = {w: self._chunk_sight(w, start_position, end) for w in self._windows}

        def attend(layer: int, q: torch.Tensor, kv: torch.Tensor, scores: Scores) -> torch.Tensor:
            keys, values = slab.data[layer]
            slab.data[layer, :, start_position:end] = kv.transpose(0, 1)
            first, mask = sights[self._layers[layer].window]
            q = q.to(self._kv_dtype)
            attended = attend_chunk(q, keys[first:end], values[first:end], mask, scores)
            return attended.to(self._dtype)

        positions = torch.arange(start_position, end, device=self._device)
        hidden = yield from self._run(hidden, positions, end, attend)
        self.kv.set_length(slab, end)
        return hidden

    @torch.inference_mode()
    def replay_by_layer(
        self, key: RequestKey, hidden: torch.Tensor, start_position: int
    ) -> ByLayer:
        """Run positions after the prompt again, (n, hidden) to (n, hidden), and append KV.

        Linears take all rows at once; each row's attention is what decode computed.
        Raises as `prefill_by_layer` does, but the rows need not be on the grid.
        """
        slab, end = self._append_to(key, hidden, start_position)
        sights = [self._sight(slab, position) for position in range(start_position, end)]

        def attend(layer: int, q: torch.Tensor, kv: torch.Tensor, scores: Scores) -> torch.Tensor:
            slab.data[layer, :, start_position:end] = kv.transpose(0, 1)
            return self._attend_rows(q, [sight[layer] for sight in sights], scores)

        positions = torch.arange(start_position, end, device=self._device)
        hidden = yield from self._run(hidden, positions, end, attend)
        self.kv.set_length(slab, end)
        return hidden

    @torch.inference_mode()
    def decode(self, keys: Sequence[RequestKey], hidden: torch.Tensor) -> torch.Tensor:
        """Run the next position of each key's request, (len(keys), hidden) to the same.

        A key that stands there n times runs n positions in order. Appends their KV. Linears take
        all rows at once, attention goes row by row.

        Raises:
            ValueError: The number of rows is wrong.
            KvFullError: A request has no room for its positions and cannot get it.
        """
        if len(keys) != len(hidden):
            raise ValueError(f"{len(hidden)} rows for {len(keys)} keys")
        rows = self.kv.next_positions(keys)
        sights = [self._sight(slab, position) for slab, position in rows]
        targets = [slab.data[:, :, position].unbind() for slab, position in rows]

        def attend(layer: int, q: torch.Tensor, kv: torch.Tensor, scores: Scores) -> torch.Tensor:
            for target, row in zip(targets, kv.unbind(), strict=True):
                target[layer].copy_(row)
            return self._attend_rows(q, [sight[layer] for sight in sights], scores)

        lengths = [position for _, position in rows]
        positions = torch.tensor(lengths, device=self._device)
        run = self._run(hidden, positions, max(lengths, default=0) + 1, attend)
        hidden = _run_out(run)
        self.kv.advance(keys)
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (n, vocab) on the CPU: final norm and head."""
        if self._head is None:
            raise ValueError("this stage has no head")
        hidden = hidden.to(self._device, self._dtype)
        logits = self._head.logits(hidden).to("cpu", torch.float32)
        scales = self.config.scales
        if scales.logits != 1:
            logits = logits * scales.logits
        if scales.logits_cap is not None:
            # Row by row: at another place in memory the last bit may differ.
            capped = [torch.tanh(row / scales.logits_cap) for row in logits]
            logits = scales.logits_cap * torch.stack(capped)
        return logits

    # --- KV transfer ------------------------------------------------------------------

    def first_positions(self, layers: LayerRange, length: int) -> list[int]:
        """Return, for each of absolute ``layers``, the first position that ``length`` sees."""
        return [first_seen(layer.window, length) for layer in self._layers[self._within(layers)]]

    def read_kv(
        self, key: RequestKey, layers: LayerRange, start: int, end: int
    ) -> tuple[TensorMeta, memoryview]:
        """Return KV of absolute ``layers`` and positions ``[start, end)`` that are computed.

        Shape (layers, 2, end - start, kv_heads, ...), as it travels; a copy that later steps
        leave alone.
        """
        slab = self.kv[key]
        kept = max(self.first_positions(layers, slab.length))
        if not kept <= start <= end <= slab.length:
            raise ValueError(f"positions [{start}, {end}) of [{kept}, {slab.length}) asked")
        part = self._wire.packed(self._part(slab, layers, start, end))
        return meta_of(part), to_bytes(part)

    def write_kv(
        self, key: RequestKey, layers: LayerRange, start: int, data: Buffer, meta: TensorMeta
    ) -> None:
        """Put KV of another stage into the reservation; the length stays as it is.

        Raises:
            ValueError: Layers, shape or element type are not this stage's, or the positions
                are outside the reservation; nothing was written.
        """
        slab = self.kv[key]
        num_positions = meta.shape[2] if len(meta.shape) == 5 else 0
        end = start + num_positions
        if not 0 <= start < end <= slab.capacity:
            raise ValueError(f"positions [{start}, {end}) into a slab of {slab.capacity}")
        if start < slab.length:
            raise ValueError(f"positions from {start} on, but {slab.length} are complete")
        target = self._part(slab, layers, start, end)
        target.copy_(self._wire.unpacked(data, meta, tuple(target.shape)))

    def set_length(self, key: RequestKey, length: int) -> None:
        """Declare that every layer has ``length`` positions (the coverage map is full)."""
        slab = self.kv[key]
        if not 0 <= length <= slab.capacity:
            raise ValueError(f"length {length} of a slab with {slab.capacity} positions")
        self.kv.set_length(slab, length)

    # --- private ----------------------------------------------------------------------

    def _append_to(
        self, key: RequestKey, hidden: torch.Tensor, start_position: int
    ) -> tuple[Slab, int]:
        slab = self.kv[key]
        if start_position != slab.length:
            raise ValueError(f"rows from position {start_position}, the length is {slab.length}")
        end = start_position + len(hidden)
        self.kv.reserve(key, end)
        return slab, end

    def _run(
        self, hidden: torch.Tensor, positions: torch.Tensor, end: int, attend: _Attention
    ) -> ByLayer:
        if hidden.ndim != 2 or hidden.shape[1] != self.config.hidden_size:
            raise ValueError(
                f"hidden states of shape {tuple(hidden.shape)}, expected (rows, "
                f"{self.config.hidden_size})"
            )
        hidden = hidden.to(self._device, self._dtype)
        rotary = {rope: table(positions, end) for rope, table in self._rotary.items()}

        for layer, block in enumerate(self._blocks):
            rope = self._layers[layer].rope
            tables = None if rope is None else rotary[rope]
            hidden = block.run(hidden, tables, positions, partial(attend, layer))
            yield
        return hidden

    def _chunk_sight(self, window: int | None, start: int, end: int) -> tuple[int, torch.Tensor]:
        """Return the first position that a chunk's rows see, rounded down, and their mask."""
        # Whole blocks, so that keys lie aligned in memory as they do from position 0 on.
        first = first_seen(window, start) // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS
        columns, n = range(first, end), end - start
        return first, chunk_mask(self.config, window, columns, n, self._kv_dtype, self._device)

    def _sight(self, slab: Slab, position: int) -> Sequence[_Sight]:
        """Return what ``position`` sees, per layer."""
        by_window = {
            window: slab.data[:, :, first_seen(window, position) : position + 1]
            .transpose(2, 3)
            .unsqueeze(2)
            .flatten(0, 1)
            .unbind()
            for window in self._windows
        }
        # All at once: each view costs several times as much between two matrices, which leave
        # nothing in the caches.
        return [
            (by_window[layer.window][2 * index], by_window[layer.window][2 * index + 1])
            for index, layer in enumerate(self._layers)
        ]

    def _attend_rows(
        self, q: torch.Tensor, sights: Sequence[_Sight], scores: Scores
    ) -> torch.Tensor:
        """Attend row by row, so that no row's result depends on another."""
        queries = q.to(self._kv_dtype).reshape(
            len(q), 1, self.config.num_kv_heads, -1, self.config.head_dim
        )
        attended = [
            attend_position(query, keys, values, scores)
            for query, (keys, values) in zip(queries.unbind(), sights, strict=True)
        ]
        return torch.cat(attended).view(len(q), -1).to(self._dtype)

    def _part(self, slab: Slab, layers: LayerRange, start: int, end: int) -> torch.Tensor:
        return slab.data[self._within(layers), :, start:end]

    def _within(self, layers: LayerRange) -> slice:
        """Return where absolute ``layers`` are among those of the stage."""
        if not self.layers.start <= layers.start < layers.end <= self.layers.end:
            raise ValueError(f"layers {layers} of a stage that has {self.layers}")
        return slice(layers.start - self.layers.start, layers.end - self.layers.start)


def _run_out(computation: ByLayer) -> torch.Tensor:
    while True:
        try:
            next(computation)
        except StopIteration as stop:
            result: torch.Tensor = stop.value
            return result

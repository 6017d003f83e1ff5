"""Weights in memory: each tensor once per device, shared by all stages that need it.

Blocks are added and dropped one by one while other threads run other blocks: a block
becomes visible when it is complete, and an executor keeps those that it was built with
until it goes itself.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch

from broker.architecture import (
    ModelConfig,
    block_tensors,
    embedding_tensors,
    head_tensors,
    stored_names,
)
from broker.plan import LayerRange
from nodes.activations import Norm
from nodes.blocks import BlockReader, Tensors
from nodes.decoder import Block
from nodes.kernels import Int8Kernel
from nodes.other.engine import OtherBlock, OtherEmbedding, OtherHead, OtherReader
from nodes.packed import Embedding, FloatEmbedding, FloatLinear, Linear
from nodes.packing import Packing


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """Final norm and head matrix (vocab, hidden)."""

    norm: Norm
    linear: Linear

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (n, vocab) of hidden states."""
        return self.linear(hidden, self.norm)

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return self.norm.num_bytes + self.linear.num_bytes


class LayerWeights:
    """The weights of one model on one device.

    Args:
        config: The model.
        source: Where tensors are read from.
        weights: Format in which they are held, one of `broker.architecture.WEIGHT_FORMATS`.
        device: Where they are held.
        kernel: Multiplies int8 weights; None: any that is exact.
    """

    def __init__(
        self,
        config: ModelConfig,
        source: Tensors,
        weights: str = "float32",
        device: torch.device | None = None,
        kernel: Int8Kernel | None = None,
    ) -> None:
        self.config, self.weights = config, weights
        self.device = device or torch.device("cpu")
        self._packing = Packing(weights, self.device, kernel)
        self.dtype = self._packing.dtype
        self._reader = BlockReader(config, source, self._packing)
        self._other: OtherReader | None = None
        self._blocks: dict[int, Block | OtherBlock] = {}
        self._embedding: Embedding | OtherEmbedding | None = None
        self._head: HeadWeights | OtherHead | None = None
        self._lock = threading.Lock()

    def add(self, layer: int) -> None:
        """Load one block, tensor by tensor; nothing happens when it is here.

        Raises:
            WrongShapeError: As it says; nothing was added. Errors of the source likewise.
        """
        if layer in self._blocks:
            return
        other = self._other_reader()
        block: Block | OtherBlock
        if other is None:
            block = Block(self.config, self._reader.block(layer))
        else:
            block = other.block(layer)
        with self._lock:
            self._blocks[layer] = block

    def add_embedding(self) -> None:
        """Load the embedding matrix; a tied head's matrix that is here already is shared."""
        if self._embedding is None:
            other = self._other_reader()
            embedding = self._make_embedding() if other is None else other.embedding()
            with self._lock:
                self._embedding = embedding

    def add_head(self) -> None:
        """Load final norm and head; a tied head shares an embedding that is here already."""
        if self._head is None:
            other = self._other_reader()
            head = self._make_head() if other is None else other.head()
            with self._lock:
                self._head = head

    def drop(self, layer: int) -> None:
        """Forget a block; its memory is free when the last executor with it is gone."""
        with self._lock:
            self._blocks.pop(layer, None)

    def drop_embedding(self) -> None:
        """Forget the embedding matrix."""
        with self._lock:
            self._embedding = None

    def drop_head(self) -> None:
        """Forget final norm and head."""
        with self._lock:
            self._head = None

    @property
    def layers(self) -> list[int]:
        """Layers that are here, ascending."""
        with self._lock:
            return sorted(self._blocks)

    @property
    def has_embedding(self) -> bool:
        """Whether the embedding is here."""
        return self._embedding is not None

    @property
    def has_head(self) -> bool:
        """Whether final norm and head are here."""
        return self._head is not None

    def holds(self, layers: LayerRange, *, embedding: bool, head: bool) -> bool:
        """Whether a stage of this shape can be built now."""
        with self._lock:
            return (
                all(layer in self._blocks for layer in range(layers.start, layers.end))
                and (self._embedding is not None or not embedding)
                and (self._head is not None or not head)
            )

    def block(self, layer: int) -> Block | OtherBlock:
        """Return a block; KeyError when it was not added."""
        return self._blocks[layer]

    @property
    def embedding(self) -> Embedding | OtherEmbedding:
        """The embedding (vocab, hidden); KeyError when it was not added."""
        if self._embedding is None:
            raise KeyError("embedding")
        return self._embedding

    @property
    def head(self) -> HeadWeights | OtherHead:
        """Final norm and head; KeyError when they were not added."""
        if self._head is None:
            raise KeyError("head")
        return self._head

    @property
    def tensor_names(self) -> list[str]:
        """The checkpoint's names of everything here, each once."""
        with self._lock:
            groups = [embedding_tensors(self.config)] if self._embedding is not None else []
            groups += [block_tensors(self.config, layer) for layer in sorted(self._blocks)]
            groups += [head_tensors(self.config)] if self._head is not None else []
        return stored_names(groups)

    @property
    def num_bytes(self) -> int:
        """Bytes of everything here; a shared matrix counts once."""
        with self._lock:
            total = sum(block.num_bytes for block in self._blocks.values())
            embedding, head = self._embedding, self._head
        total += 0 if head is None else head.num_bytes
        is_shared = (
            isinstance(embedding, FloatEmbedding)
            and isinstance(head, HeadWeights)
            and isinstance(head.linear, FloatLinear)
            and embedding.matrix is head.linear.matrix
        )
        return total + (0 if embedding is None or is_shared else embedding.num_bytes)

    def _make_embedding(self) -> Embedding:
        spec = embedding_tensors(self.config)["embedding.weight"]
        if isinstance(self._head, HeadWeights) and self.config.tie_word_embeddings:
            tied = self._head.linear
            if isinstance(tied, FloatLinear):
                return FloatEmbedding(tied.matrix)
        return self._packing.embedding(self._reader.read([spec]), spec.shape)

    def _make_head(self) -> HeadWeights:
        specs = head_tensors(self.config)
        norm, spec = self._reader.norm(specs["norm.weight"]), specs["head.weight"]
        tied = self._embedding if self.config.tie_word_embeddings else None
        linear: Linear
        if isinstance(tied, FloatEmbedding):
            linear = FloatLinear(tied.matrix)
        else:
            linear = self._packing.head(self._reader.read([spec]), spec.shape)
        return HeadWeights(norm, linear)

    def _other_reader(self) -> OtherReader | None:
        """Return who makes parts that transformers computes; None: they are ours."""
        if self._other is None and self.config.other is not None:
            # Made when it is needed: it imports transformers.
            self._other = OtherReader(self.config, self._reader.read, self._packing)
        return self._other

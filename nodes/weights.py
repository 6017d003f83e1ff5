"""Weights in memory: each tensor once per device, shared by all stages that need it.

Blocks are added and dropped one by one while other threads run other blocks: a block
becomes visible when it is complete, and an executor keeps those that it was built with
until it goes itself.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

import torch

from broker.architecture import (
    ModelConfig,
    TensorSpec,
    UnsupportedModelError,
    block_tensors,
    embedding_tensors,
    head_tensors,
)
from broker.plan import LayerRange
from nodes.decoder import BlockWeights
from nodes.tensors import DTYPES


class WrongShapeError(Exception):
    """A tensor of the checkpoint does not have the shape that config.json implies."""


class Tensors(Protocol):
    """Where weights come from: `nodes.checkpoint.TensorSource`, or made up when measuring."""

    def load_tensor(self, name: str) -> torch.Tensor:
        """Return the tensor of that name in the checkpoint, in any floating dtype."""


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """Final norm (hidden,) and head matrix (vocab, hidden)."""

    norm: torch.Tensor
    matrix: torch.Tensor


class LayerWeights:
    """The weights of one model on one device.

    Args:
        config: The model.
        source: Where tensors are read from.
        weights: Format in which they are held, ``float32`` or ``bfloat16``.
        device: Where they are held.
    """

    def __init__(
        self,
        config: ModelConfig,
        source: Tensors,
        weights: str = "float32",
        device: torch.device | None = None,
    ) -> None:
        if weights not in ("float32", "bfloat16"):
            raise UnsupportedModelError(
                f"weight format {weights!r} is unknown; use float32 or bfloat16"
            )
        self.config, self.weights = config, weights
        self.device = device or torch.device("cpu")
        self.dtype = DTYPES[weights]
        self._source = source
        self._blocks: dict[int, BlockWeights] = {}
        self._embedding: torch.Tensor | None = None
        self._head: HeadWeights | None = None
        self._lock = threading.Lock()

    def add(self, layer: int) -> None:
        """Load one block, tensor by tensor; nothing happens when it is here.

        Raises:
            WrongShapeError: As it says; nothing was added. Errors of the source likewise.
        """
        if layer in self._blocks:
            return
        block = self._load_block(layer)
        with self._lock:
            self._blocks[layer] = block

    def add_embedding(self) -> None:
        """Load the embedding matrix; a tied head's matrix that is here already is shared."""
        if self._embedding is None:
            spec = embedding_tensors(self.config)["embedding.weight"]
            tied = self._head if self.config.tie_word_embeddings else None
            matrix = tied.matrix if tied is not None else self._load(spec)
            with self._lock:
                self._embedding = matrix

    def add_head(self) -> None:
        """Load final norm and head; a tied head shares an embedding that is here already."""
        if self._head is None:
            specs = head_tensors(self.config)
            norm = self._load(specs["norm.weight"])
            tied = self._embedding if self.config.tie_word_embeddings else None
            matrix = tied if tied is not None else self._load(specs["head.weight"])
            with self._lock:
                self._head = HeadWeights(norm, matrix)

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

    def block(self, layer: int) -> BlockWeights:
        """Return a block; KeyError when it was not added."""
        return self._blocks[layer]

    @property
    def embedding(self) -> torch.Tensor:
        """The embedding matrix (vocab, hidden); KeyError when it was not added."""
        if self._embedding is None:
            raise KeyError("embedding")
        return self._embedding

    @property
    def head(self) -> HeadWeights:
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
        return list(dict.fromkeys(spec.name for group in groups for spec in group.values()))

    @property
    def num_bytes(self) -> int:
        """Bytes of everything here; a shared matrix counts once."""
        with self._lock:
            tensors = [t for block in self._blocks.values() for t in _tensors_of(block)]
            tensors += [self._embedding] if self._embedding is not None else []
            tensors += [self._head.norm, self._head.matrix] if self._head is not None else []
        unique = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
        return sum(unique.values())

    def _load(self, spec: TensorSpec) -> torch.Tensor:
        return self._load_rows([spec])

    def _load_rows(self, specs: list[TensorSpec]) -> torch.Tensor:
        """Load tensors below each other into one, with one of them in memory twice at a time.

        Always into memory of torch: bytes from a file may lie at any address, and kernels may
        add in another order at another alignment.
        """
        rows = sum(spec.shape[0] for spec in specs)
        merged = torch.empty((rows, *specs[0].shape[1:]), dtype=self.dtype, device=self.device)
        start = 0
        for spec in specs:
            tensor = self._source.load_tensor(spec.name)
            _check_shape(spec, tensor)
            merged[start : start + spec.shape[0]] = tensor
            start += spec.shape[0]
        return merged

    def _load_block(self, layer: int) -> BlockWeights:
        specs = block_tensors(self.config, layer)

        def one(name: str) -> torch.Tensor:
            return self._load(specs[name])

        def rows(part: str, *names: str) -> torch.Tensor | None:
            chosen = [specs[f"{name}.{part}"] for name in names if f"{name}.{part}" in specs]
            return self._load_rows(chosen) if chosen else None

        qkv, gate_up = (
            rows("weight", "q_proj", "k_proj", "v_proj"),
            rows("weight", "gate_proj", "up_proj"),
        )
        assert qkv is not None
        assert gate_up is not None
        return BlockWeights(
            input_norm=one("input_layernorm.weight"),
            qkv=qkv,
            qkv_bias=rows("bias", "q_proj", "k_proj", "v_proj"),
            q_norm=one("q_norm.weight") if self.config.qk_norm else None,
            k_norm=one("k_norm.weight") if self.config.qk_norm else None,
            output=one("o_proj.weight"),
            output_bias=rows("bias", "o_proj"),
            post_attention_norm=one("post_attention_layernorm.weight"),
            gate_up=gate_up,
            gate_up_bias=rows("bias", "gate_proj", "up_proj"),
            down=one("down_proj.weight"),
            down_bias=rows("bias", "down_proj"),
        )


def _tensors_of(block: BlockWeights) -> list[torch.Tensor]:
    fields = (getattr(block, name) for name in BlockWeights.__slots__)
    return [tensor for tensor in fields if tensor is not None]


def _check_shape(spec: TensorSpec, tensor: torch.Tensor) -> None:
    if tuple(tensor.shape) != spec.shape:
        raise WrongShapeError(
            f"tensor {spec.name} has shape {tuple(tensor.shape)}, config.json implies "
            f"{spec.shape}; the checkpoint's files do not belong together, fetch it again"
        )

"""Shapes of public models, and what follows from them in bytes. Pure but for the file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from math import ceil
from operator import add
from pathlib import Path
from typing import Final, NamedTuple

from broker.architecture import ModelConfig
from planner.model import ModelSpec

_FILE: Final = Path(__file__).with_name("models.toml")

FULL: Final = "full"
SLIDING: Final = "sliding"
_OF_EXPERTS: Final = "-moe"
_KINDS: Final = (FULL, SLIDING, FULL + _OF_EXPERTS, SLIDING + _OF_EXPERTS)


class WeightFormat(StrEnum):
    """How weights are held; the cost model knows them by their size alone."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    """8 bits and a 16-bit scale for every 32 weights."""
    INT4 = "int4"
    """4 bits and a 16-bit scale for every 32 weights."""
    MXFP4 = "mxfp4"
    """Experts at 4.25 bits, the rest at 16: as gpt-oss is published."""


class _Bits(NamedTuple):
    attention: float
    ffn: float
    ends: float


_BITS: Final = {
    WeightFormat.FLOAT32: _Bits(32, 32, 32),
    WeightFormat.BFLOAT16: _Bits(16, 16, 16),
    WeightFormat.INT8: _Bits(8.5, 8.5, 8.5),
    WeightFormat.INT4: _Bits(4.5, 4.5, 4.5),
    WeightFormat.MXFP4: _Bits(16, 4.25, 16),
}
_WHOLE_NUMBERS: Final = (WeightFormat.INT8, WeightFormat.INT4)
_ITEM_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueModel:
    """A decoder of the Llama family and its relatives.

    Attributes:
        name: In the catalogue.
        config: Where its configuration is published.
        intermediate_size: Of a feed-forward part without experts.
        experts: Parallel parts of a block whose kind ends in ``-moe``.
        active_experts: Of them how many work for a token.
        expert_size: Intermediate size of each.
        kinds: Of the blocks, repeated; as `broker.model_config.LayerConfig` names them.
        window: Positions that a sliding block sees.
    """

    name: str
    config: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied: bool
    context_limit: int
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    experts: int = 0
    active_experts: int = 0
    expert_size: int = 0
    kinds: tuple[str, ...] = (FULL,)
    window: int = 0

    def __post_init__(self) -> None:
        unknown = set(self.kinds) - set(_KINDS)
        if unknown or not self.kinds:
            known = ", ".join(_KINDS)
            raise ValueError(f"model {self.name}: kinds are of {known}, not {unknown}")
        if any(kind.startswith(SLIDING) for kind in self.kinds) and self.window < 1:
            raise ValueError(f"model {self.name}: sliding blocks need a window")
        if any(kind.endswith(_OF_EXPERTS) for kind in self.kinds) and not (
            1 <= self.active_experts <= self.experts and self.expert_size > 0
        ):
            raise ValueError(
                f"model {self.name}: blocks of experts need expert_size and active_experts, "
                "1 to experts"
            )

    @classmethod
    def of_config(cls, name: str, config: ModelConfig) -> CatalogueModel:
        """Return the shape of a checkpoint.

        Raises:
            ValueError: It has blocks of a kind that no data sheet can time.
        """
        experts = next((layer.experts for layer in config.layers if layer.experts), None)
        return cls(
            name=name,
            config="config.json",
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            tied=config.tie_word_embeddings,
            context_limit=config.max_position_embeddings,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            mlp_bias=config.mlp_bias,
            qk_norm=config.qk_norm is not None,
            experts=experts.count if experts else 0,
            active_experts=experts.active if experts else 0,
            expert_size=experts.intermediate_size if experts else 0,
            kinds=tuple(layer.kind for layer in config.layers),
            window=next((layer.window for layer in config.layers if layer.window), 0),
        )

    # --- parameters -----------------------------------------------------------------------

    def attention_parameters(self, kind: str) -> int:
        """Return the parameters of a block beside its feed-forward part, the router included."""
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        count = self.hidden_size * (2 * q_size + 2 * kv_size) + 2 * self.hidden_size
        count += q_size + 2 * kv_size if self.qkv_bias else 0
        count += self.hidden_size if self.output_bias else 0
        count += 2 * self.head_dim if self.qk_norm else 0
        count += self.num_heads if self.sinks else 0
        if kind.endswith(_OF_EXPERTS):
            count += self.experts * (self.hidden_size + int(self.mlp_bias))
        return count

    def expert_parameters(self, kind: str) -> int:
        """Return the parameters of one expert, or of the only feed-forward part."""
        size = self.expert_size if kind.endswith(_OF_EXPERTS) else self.intermediate_size
        bias = 2 * size + self.hidden_size if self.mlp_bias else 0
        return 3 * self.hidden_size * size + bias

    def ffn_parameters(self, kind: str) -> int:
        """Return the parameters of a block's feed-forward part, all experts together."""
        count = self.experts if kind.endswith(_OF_EXPERTS) else 1
        return count * self.expert_parameters(kind)

    def active_ffn_parameters(self, kind: str) -> int:
        """Return the parameters of it that work for one token."""
        count = self.active_experts if kind.endswith(_OF_EXPERTS) else 1
        return count * self.expert_parameters(kind)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model."""
        matrix = self.vocab_size * self.hidden_size
        ends = matrix * (1 if self.tied else 2) + self.hidden_size
        kinds = [self.kind(layer) for layer in range(self.num_layers)]
        return ends + sum(self.attention_parameters(k) + self.ffn_parameters(k) for k in kinds)

    def touched_experts(self, kind: str, rows: int) -> float:
        """Return how many experts' weights a step of ``rows`` tokens reads, on average.

        Each token chooses its experts as if at random, so a batch soon touches them all.
        """
        if not kind.endswith(_OF_EXPERTS):
            return 1.0
        missed = (1 - self.active_experts / self.experts) ** rows
        return self.experts * (1 - missed)

    # --- bytes ----------------------------------------------------------------------------

    def attention_bytes(self, kind: str, weights: WeightFormat) -> int:
        """Return what a block's weights beside its feed-forward part take."""
        return ceil(self.attention_parameters(kind) * _BITS[weights].attention / 8)

    def expert_bytes(self, kind: str, weights: WeightFormat) -> float:
        """Return what one expert takes, or the only feed-forward part."""
        return self.expert_parameters(kind) * _BITS[weights].ffn / 8

    def ffn_bytes(self, kind: str, weights: WeightFormat) -> int:
        """Return what a block's feed-forward part takes."""
        return ceil(self.ffn_parameters(kind) * _BITS[weights].ffn / 8)

    def matrix_bytes(self, weights: WeightFormat) -> int:
        """Return what the embedding takes, or the head."""
        return ceil(self.vocab_size * self.hidden_size * _BITS[weights].ends / 8)

    def kv_bytes(self, kv_format: str) -> int:
        """Return the KV cache of one position in one block."""
        if kv_format not in _ITEM_BYTES:
            known = ", ".join(_ITEM_BYTES)
            raise ValueError(f"KV format {kv_format!r} is unknown; use one of {known}")
        return 2 * self.num_kv_heads * self.head_dim * _ITEM_BYTES[kv_format]

    def kind(self, layer: int) -> str:
        """Return the kind of a block."""
        return self.kinds[layer % len(self.kinds)]

    def seen_positions(self, kind: str, context: float) -> float:
        """Return how many of ``context`` positions a block's attention reads."""
        return min(context, self.window) if kind.startswith(SLIDING) else context

    def spec(
        self,
        weights: WeightFormat,
        kv_format: str = "float16",
        request_tokens: int | None = None,
    ) -> ModelSpec:
        """Return the model in the planner's numbers.

        Args:
            weights: Format of the weights.
            kv_format: Format of the KV cache.
            request_tokens: A runtime that frees what has left the window of a sliding block
                holds only a part of each request there; that part is counted for requests
                of this length. None counts every position in every block.
        """
        matrix, norm = self.matrix_bytes(weights), ceil(self.hidden_size * _BITS[weights].ends / 8)
        kinds = tuple(self.kind(layer) for layer in range(self.num_layers))
        ffn = tuple(self.ffn_bytes(kind, weights) for kind in kinds)
        attention = [self.attention_bytes(kind, weights) for kind in kinds]
        position = in_window = self.kv_bytes(kv_format)
        if request_tokens is not None:
            in_window = ceil(position * min(1.0, self.window / request_tokens))
        activations = _ITEM_BYTES["bfloat16" if weights is WeightFormat.BFLOAT16 else "float32"]
        return ModelSpec(
            name=self.name,
            revision=f"catalogue:{self.name}",
            weights=str(weights),
            kv_format=kv_format,
            block_kinds=kinds,
            block_bytes=tuple(map(add, attention, ffn)),
            kv_bytes=tuple(in_window if kind.startswith(SLIDING) else position for kind in kinds),
            embedding_bytes=matrix,
            head_bytes=matrix + norm,
            # Our nodes hold a matrix in whole numbers twice: packed for products in the head, by
            # rows for look-ups (`broker.architecture.shared_bytes`).
            shared_bytes=matrix if self.tied and weights not in _WHOLE_NUMBERS else 0,
            activation_bytes=self.hidden_size * activations,
            context_limit=self.context_limit,
            ffn_bytes=ffn,
        )


@cache
def load_models() -> dict[str, CatalogueModel]:
    """Return the catalogue by name; it ships with the package, so an error in it is a bug."""
    document = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return {
        name: CatalogueModel(name=name, **{**entry, "kinds": tuple(entry.get("kinds", (FULL,)))})
        for name, entry in document.items()
    }

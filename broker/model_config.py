"""A model as far as computing it needs to know: what ``config.json`` says, family by family.

The files in `broker.families` read it; `broker.registry` finds the one that does. No torch, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.rope import Rope


@dataclass(frozen=True, slots=True)
class Experts:
    """A feed-forward part of many, of which each row takes a few.

    Attributes:
        count: How many there are.
        active: How many a row takes: those that its router finds most likely.
        intermediate_size: Of each.
        normalised: Whether the shares of those that a row takes are made to add up to 1.
    """

    count: int
    active: int
    intermediate_size: int
    normalised: bool


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What may differ from block to block of one model.

    Attributes:
        window: Positions that a query sees, itself included; None: all.
        experts: None: one feed-forward part for all rows.
    """

    rope: Rope
    window: int | None = None
    experts: Experts | None = None

    @property
    def kind(self) -> str:
        """Name of the blocks that take as long as this one: ``full``, ``sliding-moe``."""
        attention = "full" if self.window is None else "sliding"
        return attention if self.experts is None else f"{attention}-moe"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder of the Llama family or a relative.

    Attributes:
        family: As in ``model_type``.
        intermediate_size: Of feed-forward parts without experts.
        layers: What each block is, in order.
        qkv_bias: Whether the query, key and value projections have a bias.
        output_bias: Whether the attention's output projection has one.
        mlp_bias: Whether the three projections of the MLP have one.
        qk_norm: Whether each head's query and key are normalised before rotation.
        dtype: Element type that the checkpoint declares; nodes convert it.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    layers: tuple[LayerConfig, ...]
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    dtype: str

    @property
    def num_layers(self) -> int:
        """How many blocks there are."""
        return len(self.layers)

"""A model as far as computing it needs to know: what ``config.json`` says, family by family.

The files in `broker.families` read it; `broker.registry` finds the one that does. No torch, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from broker.rope import Rope

MXFP4_BLOCK: Final = 32
"""Numbers of MXFP4 that share a scale."""


class Norms(NamedTuple):
    """Names of a block's norms in the checkpoint; None where there is none.

    The usual block has one before each part; others have one after each, or both.
    """

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_feed_forward: str | None = "post_attention_layernorm"
    after_feed_forward: str | None = None


class QkNorm(Enum):
    """What a norm of queries and keys before rotation is taken over."""

    HEAD = "each head"
    ROW = "all heads together"


@dataclass(frozen=True, slots=True)
class Activation:
    """What becomes of gate and up in a feed-forward part.

    Attributes:
        name: ``silu`` or ``gelu_tanh``, of the gate; times up.
        limit: None, or where gate (above) and up (both ways) are cut off; 1 is then added to up.
        slope: Of the gate within its sigmoid.
    """

    name: str = "silu"
    limit: float | None = None
    slope: float = 1.0


@dataclass(frozen=True, slots=True)
class Scales:
    """Factors and bounds here and there in a model; the defaults are those of Llama.

    Attributes:
        embedding: Of what the embedding gives.
        residual: Of what attention and feed-forward part add to their input.
        scores: Of queries times keys; None: 1 / sqrt(head_dim).
        scores_cap: c of c * tanh(scores / c); None: scores as they are.
        logits: Of what the head gives.
        logits_cap: As ``scores_cap``, of logits.
    """

    embedding: float = 1.0
    residual: float = 1.0
    scores: float | None = None
    scores_cap: float | None = None
    logits: float = 1.0
    logits_cap: float | None = None


@dataclass(frozen=True, slots=True)
class Experts:
    """A feed-forward part of many, of which each row takes a few.

    Attributes:
        count: How many there are.
        active: How many a row takes: those that its router finds most likely.
        intermediate_size: Of each.
        normalised: Whether the shares of those that a row takes are made to add up to 1.
        router: Name of the module that chooses, beside ``experts``.
        has_router_bias: Whether it has a bias.
        is_packed: Whether the checkpoint has all of them in one tensor, its matrices
            transposed and gate and up in turns, with biases.
        is_mxfp4: Whether those matrices are numbers of four bits beside their scales.
    """

    count: int
    active: int
    intermediate_size: int
    normalised: bool
    router: str = "gate"
    has_router_bias: bool = False
    is_packed: bool = False
    is_mxfp4: bool = False


Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OtherLayer:
    """A block that transformers computes.

    Attributes:
        number: Its own among all, as the model counts.
        variant: Equal for blocks with tensors of the same shapes.
        tensors: Names after the block's number, and shapes.
    """

    number: int
    variant: int
    tensors: tuple[tuple[str, Shape], ...]


@dataclass(frozen=True, slots=True)
class OtherModel:
    """A model of no family here, which transformers computes.

    Attributes:
        config: Its ``config.json``.
        prefix: Of the names of a block's tensors, before its number.
        before: Names and shapes of what stands before the blocks.
        after: Names and shapes of what stands after them.
    """

    config: str
    prefix: str
    before: tuple[tuple[str, Shape], ...]
    after: tuple[tuple[str, Shape], ...]


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What may differ from block to block of one model.

    Attributes:
        rope: None: queries and keys are not rotated.
        window: Positions that a query sees, itself included; None: all.
        experts: None: one feed-forward part for all rows.
        other: None: a block of a family here.
    """

    rope: Rope | None
    window: int | None = None
    experts: Experts | None = None
    other: OtherLayer | None = None

    @property
    def kind(self) -> str:
        """Name of the blocks that take as long as this one: ``full``, ``sliding-moe``."""
        attention = "full" if self.window is None else "sliding"
        if self.other is not None:
            return f"{attention}-other{self.other.variant}"
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
        qk_norm: Whether and how queries and keys are normalised before rotation.
        is_fused: Whether the checkpoint has queries, keys and values in one tensor, and gate and
            up in another.
        has_sinks: Whether each head may also look at nothing, as much as a weight says.
        norm_offset: What is added to the weights of all norms.
        dtype: Element type that the checkpoint declares; nodes convert it.
        other: What transformers computes; sizes apart, the rest says nothing then. None: a family
            here.
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
    qk_norm: QkNorm | None = None
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    dtype: str
    norms: Norms = field(default_factory=Norms)
    norm_offset: float = 0.0
    activation: Activation = field(default_factory=Activation)
    scales: Scales = field(default_factory=Scales)
    is_fused: bool = False
    has_sinks: bool = False
    other: OtherModel | None = None

    @property
    def num_layers(self) -> int:
        """How many blocks there are."""
        return len(self.layers)

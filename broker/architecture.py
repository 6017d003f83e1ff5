"""A model in numbers: names, shapes and bytes of its tensors and KV cache. No torch, no I/O.

Planner, nodes and gateway must agree on these numbers, so all three read them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Final, NamedTuple

from broker.config_values import UnsupportedModelError
from broker.model_config import (
    Activation,
    Experts,
    LayerConfig,
    ModelConfig,
    QkNorm,
    Scales,
)
from broker.plan import LayerRange
from broker.registry import parse_config
from broker.rope import Rope
from broker.work import ITEMSIZE

__all__ = [
    "INT4_GROUP",
    "KV_FORMATS",
    "KV_TRANSFERS",
    "WEIGHT_FORMATS",
    "Activation",
    "Experts",
    "LayerConfig",
    "ModelConfig",
    "QkNorm",
    "Rope",
    "Scales",
    "TensorSpec",
    "UnsupportedModelError",
    "block_bytes",
    "block_kind",
    "block_tensors",
    "context_limit",
    "embedding_bytes",
    "embedding_tensors",
    "head_bytes",
    "head_tensors",
    "is_integer",
    "kv_bytes_per_token",
    "kv_sent_bytes_per_token",
    "matrix_format",
    "parse_config",
    "shared_bytes",
    "stage_bytes",
    "stage_tensor_names",
    "stored_names",
]

WEIGHT_FORMATS: Final = ("float32", "bfloat16", "int8", "int4")
"""How nodes can hold weights."""

KV_FORMATS: Final = ("float32", "bfloat16")
"""Element types of the KV cache."""

KV_TRANSFERS: Final = ("exact", "int8")
"""How KV travels between replicas: as it is held, or in whole numbers for slow links."""

INT4_GROUP: Final = 128
"""Columns that share a step in int4; a matrix of another number of columns is held in int8."""


class TensorSpec(NamedTuple):
    """A tensor in the checkpoint.

    Attributes:
        shape: That it must have.
        is_exact: Whether it is held in floats whatever the format, as norms and biases are.
        parts: Ends of the names of the tensors that it is stored as, where it is not one.
    """

    name: str
    shape: tuple[int, ...]
    is_exact: bool = False
    parts: tuple[str, ...] = ("",)

    @property
    def stored_names(self) -> tuple[str, ...]:
        """What it is stored as."""
        return tuple(f"{self.name}{part}" for part in self.parts)


def context_limit(config: ModelConfig) -> int:
    """Return the most positions, prompt and answer together, that the model is made for."""
    return config.max_position_embeddings


def block_kind(config: ModelConfig, layer: int) -> str:
    """Return which profile entry times this layer: blocks of one kind take equally long."""
    if not 0 <= layer < config.num_layers:
        raise ValueError(f"layer {layer} is not in 0..{config.num_layers - 1}")
    return config.layers[layer].kind


# --- tensors ------------------------------------------------------------------------------


def block_tensors(config: ModelConfig, layer: int) -> dict[str, TensorSpec]:
    """Return the tensors of one block by local name.

    Local names are ``q_proj.weight``, in a mixture ``router.weight`` and, for each expert,
    ``3.gate_proj.weight``.
    """
    if config.other is not None and (other := config.layers[layer].other) is not None:
        prefix = f"{config.other.prefix}{other.number}"
        return _other_tensors((f"{prefix}.{name}", name, shape) for name, shape in other.tensors)
    prefix = f"model.layers.{layer}"
    specs: dict[str, TensorSpec] = {}
    for place, norm in config.norms._asdict().items():
        if norm is not None:
            name = f"{prefix}.{norm}.weight"
            specs[f"{place}.weight"] = TensorSpec(name, (config.hidden_size,), is_exact=True)
    specs |= _attention_tensors(config, f"{prefix}.self_attn")
    experts = config.layers[layer].experts
    if experts is None:
        return specs | _mlp_tensors(config, f"{prefix}.mlp", config.intermediate_size)
    router, shape = f"{prefix}.mlp.{experts.router}", (experts.count, config.hidden_size)
    specs["router.weight"] = TensorSpec(f"{router}.weight", shape, is_exact=True)
    if experts.has_router_bias:
        specs["router.bias"] = TensorSpec(f"{router}.bias", (experts.count,), is_exact=True)
    if experts.is_packed:
        return specs | _packed_experts(config.hidden_size, experts, f"{prefix}.mlp.experts")
    for expert in range(experts.count):
        name, size = f"{prefix}.mlp.experts.{expert}", experts.intermediate_size
        tensors = _mlp_tensors(config, name, size)
        specs |= {f"{expert}.{local}": spec for local, spec in tensors.items()}
    return specs


def _packed_experts(hidden: int, experts: Experts, name: str) -> dict[str, TensorSpec]:
    """Return a mixture in which each matrix is (count, columns, rows)."""
    count, inner = experts.count, experts.intermediate_size
    parts = ("_blocks", "_scales") if experts.is_mxfp4 else ("",)
    return {
        "gate_up.weight": TensorSpec(
            f"{name}.gate_up_proj", (count, hidden, 2 * inner), parts=parts
        ),
        "gate_up.bias": TensorSpec(f"{name}.gate_up_proj_bias", (count, 2 * inner), is_exact=True),
        "down.weight": TensorSpec(f"{name}.down_proj", (count, inner, hidden), parts=parts),
        "down.bias": TensorSpec(f"{name}.down_proj_bias", (count, hidden), is_exact=True),
    }


def _attention_tensors(config: ModelConfig, prefix: str) -> dict[str, TensorSpec]:
    hidden, head = config.hidden_size, config.head_dim
    q_size, kv_size = config.num_heads * head, config.num_kv_heads * head
    sizes = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
    if config.is_fused:
        sizes = {"qkv_proj": q_size + 2 * kv_size}
    specs = _linear(prefix, "o_proj", hidden, q_size, config.output_bias)
    for name, size in sizes.items():
        specs |= _linear(prefix, name, size, hidden, config.qkv_bias)
    for norm, size in (("q_norm.weight", q_size), ("k_norm.weight", kv_size)):
        if config.qk_norm is not None:
            shape = (head,) if config.qk_norm is QkNorm.HEAD else (size,)
            specs[norm] = TensorSpec(f"{prefix}.{norm}", shape, is_exact=True)
    if config.has_sinks:
        specs["sinks"] = TensorSpec(f"{prefix}.sinks", (config.num_heads,), is_exact=True)
    return specs


def _mlp_tensors(config: ModelConfig, prefix: str, inner: int) -> dict[str, TensorSpec]:
    hidden, has_bias = config.hidden_size, config.mlp_bias
    sizes = (
        {"gate_up_proj": 2 * inner} if config.is_fused else {"gate_proj": inner, "up_proj": inner}
    )
    specs = _linear(prefix, "down_proj", hidden, inner, has_bias)
    for name, size in sizes.items():
        specs |= _linear(prefix, name, size, hidden, has_bias)
    return specs


def _linear(
    prefix: str, linear: str, rows: int, columns: int, has_bias: bool
) -> dict[str, TensorSpec]:
    specs = {f"{linear}.weight": TensorSpec(f"{prefix}.{linear}.weight", (rows, columns))}
    if has_bias:
        bias = TensorSpec(f"{prefix}.{linear}.bias", (rows,), is_exact=True)
        specs[f"{linear}.bias"] = bias
    return specs


def _other_tensors(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, TensorSpec]:
    # Only matrices of linears can be held in whole numbers; what else has two dimensions is rare.
    return {
        local: TensorSpec(name, shape, is_exact=len(shape) != 2) for name, local, shape in tensors
    }


def embedding_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Return the tensors of the embedding look-up by local name."""
    if config.other is not None:
        return {name: TensorSpec(name, shape, is_exact=True) for name, shape in config.other.before}
    shape = (config.vocab_size, config.hidden_size)
    return {"embedding.weight": TensorSpec("model.embed_tokens.weight", shape)}


def head_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Return final norm and head by local name; a tied head is the embedding's tensor."""
    if config.other is not None:
        return _other_tensors((name, name, shape) for name, shape in config.other.after)
    matrix = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return {
        "norm.weight": TensorSpec("model.norm.weight", (config.hidden_size,), is_exact=True),
        "head.weight": TensorSpec(matrix, (config.vocab_size, config.hidden_size)),
    }


def stage_tensor_names(
    config: ModelConfig, layers: LayerRange, embedding: bool, head: bool
) -> list[str]:
    """Return the names of a stage's stored tensors, each once, in loading order."""
    groups = [embedding_tensors(config)] if embedding else []
    groups += [block_tensors(config, layer) for layer in range(layers.start, layers.end)]
    groups += [head_tensors(config)] if head else []
    return stored_names(groups)


def stored_names(groups: Iterable[Mapping[str, TensorSpec]]) -> list[str]:
    """Return what tensors are stored as, each name once."""
    specs = (spec for group in groups for spec in group.values())
    return list(dict.fromkeys(name for spec in specs for name in spec.stored_names))


# --- bytes --------------------------------------------------------------------------------


def block_bytes(config: ModelConfig, weights: str, layer: int) -> int:
    """Return the bytes of one block held in format ``weights``."""
    return _bytes(block_tensors(config, layer), weights)


def embedding_bytes(config: ModelConfig, weights: str) -> int:
    """Return the bytes of the embedding matrix."""
    total = _bytes(embedding_tensors(config), _outer_format(weights))
    if config.other is not None or not is_integer(weights):
        return total
    # Rows that are looked up need a step, rows that are multiplied their sum as well.
    return total - config.vocab_size * ITEMSIZE["float32"]


def head_bytes(config: ModelConfig, weights: str) -> int:
    """Return the bytes of final norm and head; a tied head counts its own matrix."""
    return _bytes(head_tensors(config), _outer_format(weights))


def shared_bytes(config: ModelConfig, weights: str) -> int:
    """Return what a stage with both ends holds once instead of twice: a tied matrix.

    In whole numbers it is held twice: packed for products in the head, by rows for look-ups.
    """
    is_shared = config.tie_word_embeddings and not is_integer(weights) and config.other is None
    return embedding_bytes(config, weights) if is_shared else 0


def stage_bytes(
    config: ModelConfig, weights: str, layers: Iterable[int], *, embedding: bool, head: bool
) -> int:
    """Return the weight bytes of a stage; a tied matrix counts as `shared_bytes` says."""
    total = sum(block_bytes(config, weights, layer) for layer in layers)
    total += embedding_bytes(config, weights) if embedding else 0
    total += head_bytes(config, weights) if head else 0
    return total - (shared_bytes(config, weights) if embedding and head else 0)


def kv_bytes_per_token(config: ModelConfig, kv_format: str, num_layers: int) -> int:
    """Return the KV bytes of one position in ``num_layers`` layers."""
    if kv_format not in KV_FORMATS:
        raise _unknown_format(kv_format, KV_FORMATS)
    item_bytes = ITEMSIZE[kv_format]
    return 2 * config.num_kv_heads * config.head_dim * num_layers * item_bytes


def kv_sent_bytes_per_token(
    config: ModelConfig, kv_format: str, kv_transfer: str, num_layers: int
) -> int:
    """Return the bytes in which the KV of one position travels to another replica."""
    if kv_transfer not in KV_TRANSFERS:
        raise _unknown_format(kv_transfer, KV_TRANSFERS)
    if kv_transfer == "exact":
        return kv_bytes_per_token(config, kv_format, num_layers)
    # One divisor for each head's key and value (nodes/kv_wire.py).
    return 2 * config.num_kv_heads * (config.head_dim + ITEMSIZE["float32"]) * num_layers


def is_integer(weights: str) -> bool:
    """Whether matrices are held in whole numbers: int8 or int4."""
    if weights not in WEIGHT_FORMATS:
        raise _unknown_format(weights, WEIGHT_FORMATS)
    return weights in ("int8", "int4")


def matrix_format(weights: str, columns: int) -> str:
    """Return how a block's matrix with so many columns is held."""
    return "int8" if weights == "int4" and columns % INT4_GROUP else weights


def _outer_format(weights: str) -> str:
    # Four bits in the head change the most likely token more often than anywhere else.
    return "int8" if weights == "int4" else weights


def _bytes(specs: Mapping[str, TensorSpec], weights: str) -> int:
    return sum(_tensor_bytes(spec, weights) for spec in specs.values())


def _tensor_bytes(spec: TensorSpec, weights: str) -> int:
    if not is_integer(weights):
        return ITEMSIZE[weights] * prod(spec.shape)
    if spec.is_exact:
        return ITEMSIZE["float32"] * prod(spec.shape)
    columns = spec.shape[1]
    rows = prod(spec.shape) // columns  # of all experts together, where they are packed
    if matrix_format(weights, columns) == "int8":
        return rows * (columns + 2 * ITEMSIZE["float32"])
    return rows * (columns // 2 + 2 * ITEMSIZE["bfloat16"] * columns // INT4_GROUP)


def _unknown_format(name: str, known: tuple[str, ...]) -> UnsupportedModelError:
    return UnsupportedModelError(f"format {name!r} is unknown; use {', '.join(known)}")

"""A model in numbers: names, shapes and bytes of its tensors and KV cache. No torch, no I/O.

Planner, nodes and gateway must agree on these numbers, so all three read them here.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from broker.model_config import ModelConfig, Rope, UnsupportedModelError, parse_config
from broker.plan import LayerRange
from broker.work import ITEMSIZE

__all__ = [
    "ModelConfig",
    "Rope",
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
    "kv_bytes_per_token",
    "parse_config",
    "stage_bytes",
    "stage_tensor_names",
]


class TensorSpec(NamedTuple):
    """Name of a tensor in the checkpoint, and the shape that it must have."""

    name: str
    shape: tuple[int, ...]


def context_limit(config: ModelConfig) -> int:
    """Return the most positions, prompt and answer together, that the model is made for."""
    return config.max_position_embeddings


def block_kind(config: ModelConfig, layer: int) -> str:
    """Return which profile entry times this layer; all blocks of these families are alike."""
    if not 0 <= layer < config.num_layers:
        raise ValueError(f"layer {layer} is not in 0..{config.num_layers - 1}")
    return "full"


# --- tensors ------------------------------------------------------------------------------


def block_tensors(config: ModelConfig, layer: int) -> dict[str, TensorSpec]:
    """Return the tensors of one block: local name, as in ``q_proj.weight``, to its place."""
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    q_size, kv_size = config.num_heads * head, config.num_kv_heads * head
    linears = (
        ("self_attn", "q_proj", q_size, hidden, config.qkv_bias),
        ("self_attn", "k_proj", kv_size, hidden, config.qkv_bias),
        ("self_attn", "v_proj", kv_size, hidden, config.qkv_bias),
        ("self_attn", "o_proj", hidden, q_size, config.output_bias),
        ("mlp", "gate_proj", inner, hidden, config.mlp_bias),
        ("mlp", "up_proj", inner, hidden, config.mlp_bias),
        ("mlp", "down_proj", hidden, inner, config.mlp_bias),
    )
    prefix = f"model.layers.{layer}"
    specs: dict[str, TensorSpec] = {}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        specs[f"{norm}.weight"] = TensorSpec(f"{prefix}.{norm}.weight", (hidden,))
    for module, linear, rows, columns, has_bias in linears:
        name = f"{prefix}.{module}.{linear}"
        specs[f"{linear}.weight"] = TensorSpec(f"{name}.weight", (rows, columns))
        if has_bias:
            specs[f"{linear}.bias"] = TensorSpec(f"{name}.bias", (rows,))
    if config.qk_norm:
        for norm in ("q_norm", "k_norm"):
            specs[f"{norm}.weight"] = TensorSpec(f"{prefix}.self_attn.{norm}.weight", (head,))
    return specs


def embedding_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Return the tensors of the embedding look-up by local name."""
    shape = (config.vocab_size, config.hidden_size)
    return {"embedding.weight": TensorSpec("model.embed_tokens.weight", shape)}


def head_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Return final norm and head by local name; a tied head is the embedding's tensor."""
    matrix = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return {
        "norm.weight": TensorSpec("model.norm.weight", (config.hidden_size,)),
        "head.weight": TensorSpec(matrix, (config.vocab_size, config.hidden_size)),
    }


def stage_tensor_names(
    config: ModelConfig, layers: LayerRange, embedding: bool, head: bool
) -> list[str]:
    """Return the checkpoint's names of a stage's tensors, each once, in loading order."""
    groups = [embedding_tensors(config)] if embedding else []
    groups += [block_tensors(config, layer) for layer in range(layers.start, layers.end)]
    groups += [head_tensors(config)] if head else []
    return list(dict.fromkeys(spec.name for group in groups for spec in group.values()))


# --- bytes --------------------------------------------------------------------------------


def block_bytes(config: ModelConfig, weights: str) -> int:
    """Return the bytes of one block held in format ``weights``."""
    return _bytes(block_tensors(config, 0), weights)


def embedding_bytes(config: ModelConfig, weights: str) -> int:
    """Return the bytes of the embedding matrix."""
    return _bytes(embedding_tensors(config), weights)


def head_bytes(config: ModelConfig, weights: str) -> int:
    """Return the bytes of final norm and head; a tied head counts its own matrix."""
    return _bytes(head_tensors(config), weights)


def stage_bytes(
    config: ModelConfig, weights: str, num_layers: int, *, embedding: bool, head: bool
) -> int:
    """Return the weight bytes of a stage; a tied matrix is held once when it has both ends."""
    total = num_layers * block_bytes(config, weights)
    total += embedding_bytes(config, weights) if embedding else 0
    total += head_bytes(config, weights) if head else 0
    if embedding and head and config.tie_word_embeddings:
        total -= embedding_bytes(config, weights)
    return total


def kv_bytes_per_token(config: ModelConfig, kv_format: str, num_layers: int) -> int:
    """Return the KV bytes of one position in ``num_layers`` layers."""
    return 2 * config.num_kv_heads * config.head_dim * num_layers * _itemsize(kv_format)


def _bytes(specs: Mapping[str, TensorSpec], weights: str) -> int:
    return _itemsize(weights) * sum(prod(spec.shape) for spec in specs.values())


def _itemsize(name: str) -> int:
    if name not in ("float32", "bfloat16"):
        raise UnsupportedModelError(f"format {name!r} is unknown; use float32 or bfloat16")
    return ITEMSIZE[name]

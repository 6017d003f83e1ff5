"""Qwen2, Qwen2.5 and Qwen3, dense and as a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from broker.config_values import ConfigValues
from broker.families.family import (
    DEFAULTS,
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    Family,
    experts_of,
    layer_types_of,
    read_decoder,
    with_windows,
)
from broker.model_config import ModelConfig, QkNorm


def _read_qwen2(values: ConfigValues) -> ModelConfig:
    # A bias on queries, keys and values alone, whether a key says so or not.
    config = replace(read_decoder(values, "qwen2"), qkv_bias=True, output_bias=False)
    return _with_windows(config, values)


def _read_qwen3(values: ConfigValues) -> ModelConfig:
    return _with_windows(replace(read_decoder(values, "qwen3"), qk_norm=QkNorm.HEAD), values)


def _read_qwen3_moe(values: ConfigValues) -> ModelConfig:
    config = replace(read_decoder(values, "qwen3_moe"), qk_norm=QkNorm.HEAD)
    # The published files name one key, those that transformers 5 saves the other.
    count = "num_experts" if values.get("num_local_experts") is None else "num_local_experts"
    size = values.whole_number("moe_intermediate_size")
    experts = experts_of(values, count, size, normalised=values.flag("norm_topk_prob"))
    step, dense = (
        values.whole_number("decoder_sparse_step"),
        values.whole_numbers("mlp_only_layers"),
    )
    layers = [
        layer if number in dense or (number + 1) % step else replace(layer, experts=experts)
        for number, layer in enumerate(config.layers)
    ]
    config = replace(config, layers=tuple(layers))
    if not values.flag("use_sliding_window"):
        return config
    # In all layers: this family has no key that spares some.
    return with_windows(config, values, [SLIDING_ATTENTION] * config.num_layers)


def _with_windows(config: ModelConfig, values: ConfigValues) -> ModelConfig:
    """Return the config with a window from layer ``max_window_layers`` on, where that is on."""
    if not values.flag("use_sliding_window"):
        return config
    first = values.whole_number("max_window_layers", least=0)
    computed = [
        FULL_ATTENTION if number < first else SLIDING_ATTENTION
        for number in range(config.num_layers)
    ]
    types = layer_types_of(values, computed)
    return with_windows(config, values, types)


_DEFAULTS: Final[Mapping[str, Any]] = {
    **DEFAULTS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "sliding_window": 4096,
}

FAMILIES = (
    Family(
        name="qwen2",
        architecture="Qwen2ForCausalLM",
        defaults=_DEFAULTS,
        read=_read_qwen2,
        allowed={"attention_bias": (True,), "use_sliding_window": (False, True)},
        layer_types=(FULL_ATTENTION, SLIDING_ATTENTION),
    ),
    Family(
        name="qwen3",
        architecture="Qwen3ForCausalLM",
        defaults={**_DEFAULTS, "head_dim": 128},
        read=_read_qwen3,
        allowed={"attention_bias": (False, True), "use_sliding_window": (False, True)},
        layer_types=(FULL_ATTENTION, SLIDING_ATTENTION),
    ),
    Family(
        name="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        defaults={
            **_DEFAULTS,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 24,
            "num_key_value_heads": 4,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
            "num_experts": 128,
        },
        read=_read_qwen3_moe,
        allowed={"attention_bias": (False, True), "use_sliding_window": (False, True)},
        understood=frozenset({"num_experts", "num_local_experts"}),
    ),
)

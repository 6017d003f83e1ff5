"""Mistral 7B: Llama with a window in all layers or none."""

from __future__ import annotations

from broker.config_values import ConfigValues
from broker.families.family import (
    DEFAULTS,
    SLIDING_ATTENTION,
    Family,
    layer_types_of,
    read_decoder,
    with_windows,
)
from broker.model_config import ModelConfig


def _read(values: ConfigValues) -> ModelConfig:
    config = read_decoder(values, "mistral")
    types = layer_types_of(values, [SLIDING_ATTENTION] * config.num_layers)
    return with_windows(config, values, types)


FAMILIES = (
    Family(
        name="mistral",
        architecture="MistralForCausalLM",
        defaults={
            **DEFAULTS,
            "vocab_size": 32000,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "eos_token_id": 2,
        },
        read=_read,
        layer_types=(SLIDING_ATTENTION,),
    ),
)

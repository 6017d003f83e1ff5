"""SmolLM3: Llama in which every fourth layer does not rotate queries and keys."""

from __future__ import annotations

from dataclasses import replace

from broker.config_values import ConfigValues, UnsupportedModelError
from broker.families.family import (
    DEFAULTS,
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    Family,
    layer_types_of,
    read_decoder,
    with_windows,
)
from broker.model_config import ModelConfig


def _read(values: ConfigValues) -> ModelConfig:
    config = read_decoder(values, "smollm3")
    rotates = values.whole_numbers("no_rope_layers")  # 1 where a layer does, despite the name
    if not rotates:
        interval = values.whole_number("no_rope_layer_interval")
        rotates = tuple(int((n + 1) % interval != 0) for n in range(config.num_layers))
    if len(rotates) < config.num_layers:
        raise UnsupportedModelError(
            f"config key no_rope_layers has {len(rotates)} entries for {config.num_layers} "
            "layers; check config.json"
        )
    layers = [
        layer if does else replace(layer, rope=None)
        for layer, does in zip(config.layers, rotates, strict=False)
    ]
    config = replace(config, layers=tuple(layers))
    if not values.flag("use_sliding_window"):
        return config
    computed = [FULL_ATTENTION if layer.rope else SLIDING_ATTENTION for layer in config.layers]
    types = layer_types_of(values, computed)
    return with_windows(config, values, types)


FAMILIES = (
    Family(
        name="smollm3",
        architecture="SmolLM3ForCausalLM",
        defaults={
            **DEFAULTS,
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "rope_theta": 2000000.0,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
            "eos_token_id": 128001,
        },
        read=_read,
        allowed={
            "attention_bias": (False, True),
            "mlp_bias": (False, True),
            "use_sliding_window": (False, True),
        },
        understood=frozenset({"no_rope_layers", "no_rope_layer_interval"}),
        layer_types=(FULL_ATTENTION, SLIDING_ATTENTION),
    ),
)

"""gpt-oss: experts with biases and a clamped activation, sinks of attention, mixed windows.

Its published files hold the experts in MXFP4, which is not read yet: a checkpoint that was
converted to bfloat16 or float32 is.
"""

from __future__ import annotations

from dataclasses import replace

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
from broker.model_config import Activation, ModelConfig


def _read(values: ConfigValues) -> ModelConfig:
    config = read_decoder(values, "gpt_oss")
    experts = experts_of(
        values, "num_local_experts", config.intermediate_size, normalised=True, is_packed=True
    )
    layers = tuple(replace(layer, experts=experts) for layer in config.layers)
    config = replace(
        config,
        layers=layers,
        has_sinks=True,
        mlp_bias=True,
        activation=Activation(
            limit=values.number("swiglu_limit"), slope=values.number("swiglu_alpha")
        ),
    )
    alternating = [
        FULL_ATTENTION if number % 2 else SLIDING_ATTENTION for number in range(config.num_layers)
    ]
    types = layer_types_of(values, alternating)
    return with_windows(config, values, types)


FAMILIES = (
    Family(
        name="gpt_oss",
        architecture="GptOssForCausalLM",
        defaults={
            **DEFAULTS,
            "vocab_size": 201088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 36,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150000.0,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
            "attention_bias": True,
            "sliding_window": 128,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
        },
        read=_read,
        allowed={"attention_bias": (False, True)},
        understood=frozenset({"num_local_experts"}),
        layer_types=(FULL_ATTENTION, SLIDING_ATTENTION),
    ),
)

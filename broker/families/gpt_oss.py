"""gpt-oss: experts with biases and a clamped activation, sinks of attention, mixed windows.

Its published files hold the experts in MXFP4; copies in bfloat16 or float32 are read as well,
and GGUF files, in which each expert has matrices of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from broker.config_values import REMEDY, ConfigValues, UnsupportedModelError
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
from broker.model_config import MXFP4_BLOCK, Activation, Experts, ModelConfig


def _read(values: ConfigValues) -> ModelConfig:
    config = read_decoder(values, "gpt_oss")
    experts = experts_of(values, "num_local_experts", config.intermediate_size, normalised=True)
    method = _quantisation(values, experts)
    experts = replace(
        experts,
        router="router",
        has_router_bias=True,
        is_packed=method != "gguf",
        is_mxfp4=method == "mxfp4",
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


def _quantisation(values: ConfigValues, experts: Experts) -> str | None:
    """Return how the experts are stored; None: in floats."""
    quantisation = values.get("quantization_config")
    if not quantisation:
        return None
    method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else None
    if method == "gguf":
        return "gguf"
    if method != "mxfp4":
        raise UnsupportedModelError(
            f"config key quantization_config has the method {method!r}, of which gpt_oss models "
            f"have mxfp4 alone; {REMEDY}"
        )
    sizes = values.whole_number("hidden_size"), experts.intermediate_size
    if any(size % MXFP4_BLOCK for size in sizes):
        raise UnsupportedModelError(
            f"hidden_size and intermediate_size {sizes} are no multiples of {MXFP4_BLOCK}, of "
            "which blocks of MXFP4 are made; check config.json"
        )
    return "mxfp4"


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
        understood=frozenset({"num_local_experts", "quantization_config"}),
        layer_types=(FULL_ATTENTION, SLIDING_ATTENTION),
    ),
)

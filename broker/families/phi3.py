"""Phi-3, Phi-3.5 and Phi-4, mini and medium: fused weights, some dimensions rotated, longrope."""

from __future__ import annotations

from dataclasses import replace

from broker.config_values import ConfigValues, UnsupportedModelError
from broker.families.family import (
    DEFAULTS,
    SLIDING_ATTENTION,
    Family,
    read_decoder,
    with_windows,
)
from broker.model_config import ModelConfig
from broker.rope import read_rope


def _read(values: ConfigValues) -> ModelConfig:
    rope = read_rope(values, partial=True)
    config = replace(read_decoder(values, "phi3", rope), is_fused=True)
    if rope.kind == "longrope":
        pairs = int(config.head_dim * rope.share) // 2
        if len(rope.factors) != pairs:
            raise UnsupportedModelError(
                f"config key rope_scaling.short_factor has {len(rope.factors)} entries for "
                f"{pairs} pairs of dimensions; check config.json"
            )
        # See `broker.rope`: beyond the original context all positions would be rotated anew.
        original = rope.original_max_position_embeddings
        limit = min(config.max_position_embeddings, original)
        config = replace(config, max_position_embeddings=limit)
    return with_windows(config, values, [SLIDING_ATTENTION] * config.num_layers)


FAMILIES = (
    Family(
        name="phi3",
        architecture="Phi3ForCausalLM",
        defaults={
            **DEFAULTS,
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "eos_token_id": 32000,
        },
        read=_read,
        understood=frozenset({"partial_rotary_factor"}),
    ),
)

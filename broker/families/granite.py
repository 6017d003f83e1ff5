"""Granite 3: Llama with four multipliers."""

from __future__ import annotations

from dataclasses import replace

from broker.config_values import ConfigValues
from broker.families.family import DEFAULTS, Family, read_decoder
from broker.model_config import ModelConfig, Scales


def _read(values: ConfigValues) -> ModelConfig:
    scales = Scales(
        embedding=values.number("embedding_multiplier"),
        residual=values.number("residual_multiplier"),
        scores=values.number("attention_multiplier"),
        logits=1 / values.number("logits_scaling"),
    )
    return replace(read_decoder(values, "granite"), scales=scales)


_MULTIPLIERS = (
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
)

FAMILIES = (
    Family(
        name="granite",
        architecture="GraniteForCausalLM",
        defaults={
            **DEFAULTS,
            **dict.fromkeys(_MULTIPLIERS, 1.0),
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "max_position_embeddings": 2048,
            "eos_token_id": 2,
        },
        read=_read,
        allowed={"attention_bias": (False, True), "mlp_bias": (False, True)},
        understood=frozenset(_MULTIPLIERS),
    ),
)

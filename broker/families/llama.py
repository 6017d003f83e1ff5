"""Llama 2 and 3, and the many models that are published as such."""

from __future__ import annotations

from broker.config_values import ConfigValues
from broker.families.family import DEFAULTS, Family, read_decoder
from broker.model_config import ModelConfig


def _read(values: ConfigValues) -> ModelConfig:
    return read_decoder(values, "llama")


FAMILIES = (
    Family(
        name="llama",
        architecture="LlamaForCausalLM",
        defaults={
            **DEFAULTS,
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "max_position_embeddings": 2048,
            "eos_token_id": 2,
        },
        read=_read,
        allowed={"attention_bias": (False, True), "mlp_bias": (False, True)},
    ),
)

"""OLMo 2: norms after attention and feed-forward part, queries and keys normalised as a whole."""

from __future__ import annotations

from dataclasses import replace

from broker.config_values import ConfigValues
from broker.families.family import DEFAULTS, Family, read_decoder
from broker.model_config import ModelConfig, Norms, QkNorm


def _read(values: ConfigValues) -> ModelConfig:
    norms = Norms(
        before_attention=None,
        after_attention="post_attention_layernorm",
        before_feed_forward=None,
        after_feed_forward="post_feedforward_layernorm",
    )
    return replace(read_decoder(values, "olmo2"), norms=norms, qk_norm=QkNorm.ROW)


FAMILIES = (
    Family(
        name="olmo2",
        architecture="Olmo2ForCausalLM",
        defaults={
            **DEFAULTS,
            "vocab_size": 50304,
            "intermediate_size": 11008,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "eos_token_id": 50279,
        },
        read=_read,
        allowed={"attention_bias": (False, True)},
    ),
)

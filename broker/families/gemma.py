"""Gemma 2 and the text models of Gemma 3: norms around each part, mixed windows, capped scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from broker.config_values import ConfigValues
from broker.families.family import (
    DEFAULTS,
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    Family,
    layer_types_of,
    read_decoder,
    with_windows,
)
from broker.model_config import Activation, ModelConfig, Norms, QkNorm, Scales
from broker.rope import read_rope


def _read_gemma2(values: ConfigValues) -> ModelConfig:
    config = _with_blocks_of_gemma(read_decoder(values, "gemma2"), values)
    types = layer_types_of(values, _full_every(2, config.num_layers))
    return with_windows(config, values, types)


def _read_gemma3(values: ConfigValues) -> ModelConfig:
    # Each type of layer has a rotation of its own.
    by_type: Mapping[str, Any] = values.get("rope_parameters") or {}
    of_full = values.changed(rope_parameters=by_type.get(FULL_ATTENTION))
    of_sliding = values.changed(
        rope_theta=values.get("rope_local_base_freq"),
        rope_scaling=None,
        rope_parameters=by_type.get(SLIDING_ATTENTION),
    )
    ropes = {FULL_ATTENTION: read_rope(of_full), SLIDING_ATTENTION: read_rope(of_sliding)}
    config = read_decoder(values, "gemma3_text", ropes[FULL_ATTENTION])
    config = replace(_with_blocks_of_gemma(config, values), qk_norm=QkNorm.HEAD)
    every = values.whole_number("sliding_window_pattern")
    types = layer_types_of(values, _full_every(every, config.num_layers))
    layers = [
        replace(layer, rope=ropes[kind]) for layer, kind in zip(config.layers, types, strict=True)
    ]
    config = replace(config, layers=tuple(layers))
    return with_windows(config, values, types)


def _with_blocks_of_gemma(config: ModelConfig, values: ConfigValues) -> ModelConfig:
    caps = values.get("attn_logit_softcapping"), values.get("final_logit_softcapping")
    return replace(
        config,
        norms=Norms(
            after_attention="post_attention_layernorm",
            before_feed_forward="pre_feedforward_layernorm",
            after_feed_forward="post_feedforward_layernorm",
        ),
        norm_offset=1.0,
        activation=Activation("gelu_tanh"),
        scales=Scales(
            embedding=math.sqrt(config.hidden_size),
            scores=1 / math.sqrt(values.number("query_pre_attn_scalar")),
            scores_cap=None if caps[0] is None else values.number("attn_logit_softcapping"),
            logits_cap=None if caps[1] is None else values.number("final_logit_softcapping"),
        ),
    )


def _full_every(every: int, num_layers: int) -> list[str]:
    return [
        SLIDING_ATTENTION if (number + 1) % every else FULL_ATTENTION
        for number in range(num_layers)
    ]


_DEFAULTS: Final[Mapping[str, Any]] = {
    **DEFAULTS,
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}
_ALLOWED: Final[Mapping[str, tuple[Any, ...]]] = {
    # Early files say "gelu" and are computed with its approximation all the same.
    "hidden_act": ("gelu", "gelu_pytorch_tanh"),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False, True),
    "use_bidirectional_attention": (False,),
}
_UNDERSTOOD: Final = frozenset(
    {"attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"}
)

FAMILIES = (
    Family(
        name="gemma2",
        architecture="Gemma2ForCausalLM",
        defaults={
            **_DEFAULTS,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        read=_read_gemma2,
        allowed=_ALLOWED,
        understood=_UNDERSTOOD,
        layer_types=(FULL_ATTENTION, SLIDING_ATTENTION),
    ),
    Family(
        name="gemma3_text",
        architecture="Gemma3ForCausalLM",
        defaults={
            **_DEFAULTS,
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "sliding_window_pattern": 6,
        },
        read=_read_gemma3,
        allowed=_ALLOWED,
        understood=_UNDERSTOOD,
        layer_types=(FULL_ATTENTION, SLIDING_ATTENTION),
    ),
)

"""What a family's file provides, and what all families read the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from broker.config_values import ConfigValues, UnsupportedModelError
from broker.model_config import Experts, LayerConfig, ModelConfig
from broker.rope import Rope, read_rope

FULL_ATTENTION: Final = "full_attention"
SLIDING_ATTENTION: Final = "sliding_attention"

DEFAULTS: Final[Mapping[str, Any]] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
"""Defaults that most configuration classes of transformers share."""

NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "quantization_config": (),
    "compression_config": (),
    "partial_rotary_factor": (1.0,),
    "use_sliding_window": (False,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "is_causal": (True,),
    "alibi": (False,),
    "clip_qkv": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "embedding_multiplier": (1.0,),
    "attention_multiplier": (),
    "residual_multiplier": (1.0,),
    "logits_scaling": (1.0,),
    "logit_scale": (1.0,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    # "swish" is another name for the same function.
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
}
"""Keys that change the computation in some model, and the values with which they do not.

None and absence are always neutral."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models of one architecture.

    Attributes:
        name: As in ``model_type``.
        architecture: As in ``architectures``.
        defaults: Those of transformers' configuration class, on which a config may rely.
        read: Makes the config; may raise `UnsupportedModelError`.
        allowed: Values of keys that `NEUTRAL` refuses and that are computed right.
        understood: Keys of which ``read`` judges every value.
        layer_types: What may stand in the key of that name.
    """

    name: str
    architecture: str
    defaults: Mapping[str, Any]
    read: Callable[[ConfigValues], ModelConfig]
    allowed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    understood: frozenset[str] = frozenset()
    layer_types: tuple[str, ...] = (FULL_ATTENTION,)


def read_decoder(values: ConfigValues, family: str, rope: Rope | None = None) -> ModelConfig:
    """Return a decoder with the blocks of Llama: what `dataclasses.replace` starts from.

    A family that reads its rotation in another way gives it as ``rope``.

    Raises:
        UnsupportedModelError: A value is malformed, or two do not fit together.
    """
    num_heads, hidden_size = (
        values.whole_number("num_attention_heads"),
        values.whole_number("hidden_size"),
    )
    num_kv_heads = values.whole_number("num_key_value_heads", num_heads)
    head_dim = values.whole_number("head_dim", hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise UnsupportedModelError(
            f"num_attention_heads={num_heads} is not a multiple of "
            f"num_key_value_heads={num_kv_heads}; check the checkpoint's config.json"
        )
    if head_dim % 2:
        raise UnsupportedModelError(
            f"head_dim={head_dim} is odd, rotary embeddings need pairs; check config.json"
        )
    max_positions = values.whole_number("max_position_embeddings")
    layer = LayerConfig(read_rope(values) if rope is None else rope)
    return ModelConfig(
        family=family,
        hidden_size=hidden_size,
        intermediate_size=values.whole_number("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=values.whole_number("vocab_size"),
        rms_norm_eps=values.number("rms_norm_eps"),
        layers=(layer,) * values.whole_number("num_hidden_layers"),
        tie_word_embeddings=values.flag("tie_word_embeddings"),
        qkv_bias=values.flag("attention_bias"),
        output_bias=values.flag("attention_bias"),
        mlp_bias=values.flag("mlp_bias"),
        max_position_embeddings=max_positions,
        eos_token_ids=values.whole_numbers("eos_token_id"),
        dtype=str(values.get("dtype") or values.get("torch_dtype") or "float32"),
    )


def layer_types_of(values: ConfigValues, computed: Sequence[str]) -> Sequence[str]:
    """Return the type of each layer: the key ``layer_types``, or ``computed`` where it is absent.

    Raises:
        UnsupportedModelError: There are not as many types as there are layers.
    """
    types: Sequence[str] = values.get("layer_types") or computed
    if len(types) != len(computed):
        raise UnsupportedModelError(
            f"config key layer_types has {len(types)} entries for {len(computed)} layers; "
            "check config.json"
        )
    return types


def with_windows(config: ModelConfig, values: ConfigValues, types: Sequence[str]) -> ModelConfig:
    """Return the config with the key ``sliding_window`` in its layers of sliding attention.

    There is no window where the key is absent, or as large as the context.
    """
    window = None
    if values.get("sliding_window") is not None:
        window = values.whole_number("sliding_window")
        window = window if window < config.max_position_embeddings else None
    layers = [
        replace(layer, window=window if kind == SLIDING_ATTENTION else None)
        for layer, kind in zip(config.layers, types, strict=True)
    ]
    return replace(config, layers=tuple(layers))


def experts_of(
    values: ConfigValues,
    count_key: str,
    intermediate_size: int,
    *,
    normalised: bool,
) -> Experts:
    """Return a mixture as its keys describe it.

    Raises:
        UnsupportedModelError: More of them should work for a row than there are.
    """
    count, active = values.whole_number(count_key), values.whole_number("num_experts_per_tok")
    if active > count:
        raise UnsupportedModelError(
            f"config key num_experts_per_tok={active} with {count} experts; check config.json"
        )
    return Experts(count, active, intermediate_size, normalised)

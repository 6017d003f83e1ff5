"""What a checkpoint's ``config.json`` says about the computation. No torch, no I/O.

Both layouts are understood: transformers 4 (``rope_theta``, ``rope_scaling``, ``torch_dtype`` at
the top level) and transformers 5 (``rope_parameters``, ``dtype``). A key that is absent has
its family's documented default; a key that would change the computation in a way that
`nodes.decoder` does not implement is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


class UnsupportedModelError(ValueError):
    """The checkpoint cannot be served as it is; the message says what, why and the remedy."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding.

    Attributes:
        kind: ``default``, ``linear`` (positions divided by ``factor``) or ``llama3``
            (frequencies below a wavelength divided by ``factor``, blended in between).
        theta: Base of the frequencies.
        original_max_position_embeddings: Context of pre-training; ``llama3`` only.
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder of the Llama family, as far as computing it needs to know.

    Attributes:
        family: ``llama``, ``mistral``, ``qwen2`` or ``qwen3``.
        qkv_bias: Whether the query, key and value projections have a bias.
        output_bias: Whether the attention's output projection has one.
        mlp_bias: Whether the three projections of the MLP have one.
        qk_norm: Whether each head's query and key are normalised before rotation.
        sliding_window: Positions that a query sees, itself included; None: all. Larger
            than the context counts as None.
        dtype: Element type that the checkpoint declares; nodes convert it.
    """

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: Rope
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: int | None
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    dtype: str


_ARCHITECTURES: Final = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}

_COMMON_DEFAULTS: Final[Mapping[str, Any]] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
_QWEN_DEFAULTS: Final[Mapping[str, Any]] = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
# Defaults of transformers' configuration classes, which a config.json may rely on.
_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama": {
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "eos_token_id": 2,
    },
    "mistral": {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "eos_token_id": 2,
    },
    "qwen2": _QWEN_DEFAULTS,
    "qwen3": {**_QWEN_DEFAULTS, "head_dim": 128},
}

# Keys of relatives that change the computation, and the values with which they do not.
# None and absence are always neutral.
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
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
}
_REMEDY: Final = "choose another checkpoint, or a converted copy of it without this key"


def parse_config(config: Mapping[str, Any]) -> ModelConfig:
    """Read a ``config.json`` of either layout.

    Raises:
        UnsupportedModelError: The architecture is unknown, a key changes the computation in
            an unsupported way, or a value is malformed; names the key and the remedy.
    """
    family = _family(config)
    _refuse_unsupported(config, family)
    values = {**_COMMON_DEFAULTS, **_DEFAULTS[family], **config}
    num_heads = _positive(values, "num_attention_heads")
    hidden_size = _positive(values, "hidden_size")
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = num_heads
    if values.get("head_dim") is None:
        values["head_dim"] = hidden_size // num_heads
    num_kv_heads, head_dim = _positive(values, "num_key_value_heads"), _positive(values, "head_dim")
    if num_heads % num_kv_heads:
        raise UnsupportedModelError(
            f"num_attention_heads={num_heads} is not a multiple of "
            f"num_key_value_heads={num_kv_heads}; check the checkpoint's config.json"
        )
    if head_dim % 2:
        raise UnsupportedModelError(
            f"head_dim={head_dim} is odd, rotary embeddings need pairs; check config.json"
        )
    max_positions = _positive(values, "max_position_embeddings")
    # Qwen2 has a bias on queries, keys and values alone, whether a key says so or not.
    attention_bias = family == "qwen2" or bool(values["attention_bias"])
    return ModelConfig(
        family=family,
        num_layers=_positive(values, "num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=_positive(values, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=_positive(values, "vocab_size"),
        rms_norm_eps=_number(values, "rms_norm_eps"),
        rope=_rope(values, max_positions),
        tie_word_embeddings=bool(values["tie_word_embeddings"]),
        qkv_bias=attention_bias,
        output_bias=attention_bias and family != "qwen2",
        mlp_bias=bool(values["mlp_bias"]),
        qk_norm=family == "qwen3",
        sliding_window=_sliding_window(values, family, max_positions),
        max_position_embeddings=max_positions,
        eos_token_ids=_token_ids(values.get("eos_token_id")),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
    )


def _family(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not names:
        # Old and hand-written files have only the model type.
        model_type = config.get("model_type")
        if model_type in _DEFAULTS:
            return str(model_type)
        names = [f"model_type {model_type!r}"]
    for name in names:
        if name in _ARCHITECTURES:
            return _ARCHITECTURES[name]
    raise UnsupportedModelError(
        f"architecture {', '.join(map(str, names))} is not supported; "
        f"choose a checkpoint of {', '.join(_ARCHITECTURES)}"
    )


def _refuse_unsupported(config: Mapping[str, Any], family: str) -> None:
    neutral = dict(_NEUTRAL)
    # "swish" is another name for the same function.
    neutral["hidden_act"] = ("silu", "swish")
    neutral["attention_bias"] = {"qwen2": (True,), "mistral": (False,)}.get(family, (False, True))
    neutral["mlp_bias"] = (False, True) if family == "llama" else (False,)
    for key, allowed in neutral.items():
        value = config.get(key)
        if value is not None and value not in allowed:
            shown = "..." if isinstance(value, dict) else repr(value)
            raise UnsupportedModelError(
                f"config key {key}={shown} is not supported for {family} models; {_REMEDY}"
            )
    layer_types = config.get("layer_types") or []
    for kind in layer_types:
        if kind != ("sliding_attention" if family == "mistral" else "full_attention"):
            raise UnsupportedModelError(
                f"config key layer_types contains {kind!r}, which is not supported for "
                f"{family} models; {_REMEDY}"
            )


def _rope(values: Mapping[str, Any], max_positions: int) -> Rope:
    # Same order as transformers 5: rope_scaling wins, and what it lacks stands at top level.
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    parameters = {"rope_theta": values.get("rope_theta"), **(values.get(key) or {})}
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise UnsupportedModelError(f"config key {key} differs by layer type; {_REMEDY}")
    if parameters.get("partial_rotary_factor") not in (None, 1.0):
        raise UnsupportedModelError(f"config key {key}.partial_rotary_factor; {_REMEDY}")
    if kind not in ("default", "linear", "llama3"):
        raise UnsupportedModelError(
            f"config key {key}: rope type {kind!r} is not supported "
            f"(default, linear and llama3 are); {_REMEDY}"
        )
    theta = parameters.get("rope_theta")
    theta = 10000.0 if theta is None else _number(parameters, "rope_theta", f"{key}.")
    if kind == "default":
        return Rope(theta=theta)
    factor = _number(parameters, "factor", f"{key}.")
    if kind == "linear":
        return Rope(kind="linear", theta=theta, factor=factor)
    name = "original_max_position_embeddings"
    original = values.get(name) or parameters.get(name) or max_positions
    return Rope(
        kind="llama3",
        theta=theta,
        factor=factor,
        low_freq_factor=_number(parameters, "low_freq_factor", f"{key}."),
        high_freq_factor=_number(parameters, "high_freq_factor", f"{key}."),
        original_max_position_embeddings=_positive({name: original}, name),
    )


def _sliding_window(values: Mapping[str, Any], family: str, max_positions: int) -> int | None:
    # Qwen's is off unless use_sliding_window, which is refused; Llama has none.
    if family != "mistral" or values.get("sliding_window") is None:
        return None
    window = _positive(values, "sliding_window")
    return window if window < max_positions else None


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise UnsupportedModelError(f"config key eos_token_id={value!r} is not a list of token ids")
    return tuple(ids)


def _positive(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModelError(
            f"config key {key}={value!r} is not a whole number of at least 1; check config.json"
        )
    return value


def _number(values: Mapping[str, Any], key: str, inside: str = "") -> float:
    value = values.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise UnsupportedModelError(
            f"config key {inside}{key}={value!r} is not a number greater than 0; check config.json"
        )
    return float(value)

"""The ``config.json`` that a GGUF file stands for, architecture by architecture.

llama.cpp leaves out what it knows by the architecture's name, so some values are constants
here; each says which. `broker.families` reads the result like any other config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.gguf.file import GgufFile, Metadata
from gateway.model import ModelRefusedError

_EMBEDDING: Final = "token_embd.weight"
_HEAD: Final = "output.weight"
_LLAMA3_FACTORS: Final = "rope_freqs.weight"
_SHORT_FACTORS: Final = "rope_factors_short.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What llama.cpp makes of the models of one family.

    Attributes:
        name: As in ``architectures`` of a ``config.json``.
        more: Values beyond those that all have.
        pairs_rows: Whether rows of queries and keys that are rotated together lie beside each
            other in the file.
        added_to_norms: What the weights of norms have been increased by.
    """

    name: str
    more: Callable[[GgufFile], Mapping[str, Any]] = lambda file: {}
    pairs_rows: bool = False
    added_to_norms: float = 0.0


def architecture_of(file: GgufFile) -> Architecture:
    """Return what is known of a file's architecture; `ModelRefusedError` if nothing is."""
    name = file.metadata.architecture
    if name not in _ARCHITECTURES:
        raise ModelRefusedError(
            f"{file.path}: GGUF files of architecture {name!r} are not read; choose one of "
            f"{', '.join(_ARCHITECTURES)}, or the same model in safetensors"
        )
    return _ARCHITECTURES[name]


def config_of(file: GgufFile) -> dict[str, Any]:
    """Return the config of the model in a file.

    Raises:
        ModelRefusedError: The architecture is unknown, or a key is missing.
    """
    architecture, metadata = architecture_of(file), file.metadata
    if _EMBEDDING not in file.tensors:
        raise ModelRefusedError(f"{file.path} has no tensor {_EMBEDDING}; download it again")
    num_heads = metadata.need_of_model("attention.head_count", int)
    hidden_size = metadata.need_of_model("embedding_length", int)
    config: dict[str, Any] = {
        "architectures": [architecture.name],
        "vocab_size": file.tensors[_EMBEDDING].shape[0],
        "hidden_size": hidden_size,
        "num_hidden_layers": metadata.need_of_model("block_count", int),
        "num_attention_heads": num_heads,
        "num_key_value_heads": metadata.of_model("attention.head_count_kv", num_heads),
        "head_dim": metadata.of_model("attention.key_length", hidden_size // num_heads),
        "intermediate_size": metadata.need_of_model("feed_forward_length", int),
        "max_position_embeddings": metadata.need_of_model("context_length", int),
        "rms_norm_eps": metadata.need_of_model("attention.layer_norm_rms_epsilon", float),
        "rope_theta": metadata.of_model("rope.freq_base", 10000.0),
        "tie_word_embeddings": _HEAD not in file.tensors,
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float32",
    }
    scaling = _rope_scaling(file)
    return config | ({"rope_scaling": scaling} if scaling else {}) | dict(architecture.more(file))


def _rope_scaling(file: GgufFile) -> dict[str, Any]:
    metadata = file.metadata
    original = metadata.of_model("rope.scaling.original_context_length")
    if _LLAMA3_FACTORS in file.factors:
        # Llama 3: no parameters, but what comes of them for each frequency. Longrope has that.
        return {
            "rope_type": "longrope",
            "short_factor": list(file.factors[_LLAMA3_FACTORS]),
            "attention_factor": 1.0,
        }
    if _SHORT_FACTORS in file.factors:
        return {
            "rope_type": "longrope",
            "short_factor": list(file.factors[_SHORT_FACTORS]),
            "attention_factor": metadata.of_model("rope.scaling.attn_factor", 1.0),
            "original_max_position_embeddings": original,
        }
    kind = metadata.of_model("rope.scaling.type", "none")
    if kind == "none":
        return {}
    scaling = {
        "rope_type": kind,
        "factor": metadata.of_model("rope.scaling.factor"),
        "original_max_position_embeddings": original,
        "beta_fast": metadata.of_model("rope.scaling.yarn_beta_fast"),
        "beta_slow": metadata.of_model("rope.scaling.yarn_beta_slow"),
    }
    return {key: value for key, value in scaling.items() if value is not None}


def _llama(file: GgufFile) -> dict[str, Any]:
    return {
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }


def _qwen3_moe(file: GgufFile) -> dict[str, Any]:
    metadata = file.metadata
    return {
        "num_experts": metadata.need_of_model("expert_count", int),
        "num_experts_per_tok": metadata.need_of_model("expert_used_count", int),
        "moe_intermediate_size": metadata.need_of_model("expert_feed_forward_length", int),
        "norm_topk_prob": True,  # llama.cpp knows it by the name
    }


def _gpt_oss(file: GgufFile) -> dict[str, Any]:
    metadata, scaling = file.metadata, _rope_scaling(file)
    return {
        "num_local_experts": metadata.need_of_model("expert_count", int),
        "num_experts_per_tok": metadata.need_of_model("expert_used_count", int),
        "intermediate_size": metadata.need_of_model("expert_feed_forward_length", int),
        "sliding_window": metadata.of_model("attention.sliding_window"),
        # As the model was trained; no file says it.
        **({"rope_scaling": {**scaling, "truncate": False}} if scaling else {}),
        "quantization_config": {"quant_method": "gguf"},
    }


def _phi3(file: GgufFile) -> dict[str, Any]:
    metadata = file.metadata
    rotated = metadata.of_model("rope.dimension_count")
    head_dim = metadata.need_of_model("embedding_length", int) // metadata.need_of_model(
        "attention.head_count", int
    )
    original = metadata.of_model("rope.scaling.original_context_length")
    return {
        "partial_rotary_factor": rotated / head_dim if rotated else 1.0,
        "sliding_window": metadata.of_model("attention.sliding_window"),
        "original_max_position_embeddings": original
        or metadata.need_of_model("context_length", int),
    }


def _granite(file: GgufFile) -> dict[str, Any]:
    metadata = file.metadata
    return {
        "embedding_multiplier": metadata.of_model("embedding_scale", 1.0),
        "residual_multiplier": metadata.of_model("residual_scale", 1.0),
        "attention_multiplier": metadata.of_model("attention.scale", 1.0),
        "logits_scaling": metadata.of_model("logit_scale", 1.0),
    }


def _gemma2(file: GgufFile) -> dict[str, Any]:
    metadata = file.metadata
    return {
        **_gemma(metadata, largest=46),
        "attn_logit_softcapping": metadata.of_model("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.of_model("final_logit_softcapping", 30.0),
    }


def _gemma3(file: GgufFile) -> dict[str, Any]:
    metadata = file.metadata
    return {
        **_gemma(metadata, largest=62),
        "rope_local_base_freq": metadata.of_model("rope.freq_base_swa", 10000.0),
    }


def _gemma(metadata: Metadata, largest: int) -> dict[str, Any]:
    """Return what both have; the 27B models, known by their layers, scale scores otherwise."""
    heads = metadata.need_of_model("attention.head_count", int)
    hidden = metadata.need_of_model("embedding_length", int)
    head_dim = metadata.of_model("attention.key_length", hidden // heads)
    is_largest = metadata.need_of_model("block_count", int) == largest
    return {
        "query_pre_attn_scalar": hidden // heads if is_largest else head_dim,
        "sliding_window": metadata.of_model("attention.sliding_window"),
    }


_ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    # Mistral and SmolLM2 come as Llama as well.
    "llama": Architecture(name="LlamaForCausalLM", more=_llama, pairs_rows=True),
    "qwen2": Architecture(name="Qwen2ForCausalLM"),
    "qwen3": Architecture(name="Qwen3ForCausalLM"),
    "qwen3moe": Architecture(name="Qwen3MoeForCausalLM", more=_qwen3_moe),
    "gpt-oss": Architecture(name="GptOssForCausalLM", more=_gpt_oss),
    "gemma2": Architecture(name="Gemma2ForCausalLM", more=_gemma2, added_to_norms=1.0),
    "gemma3": Architecture(name="Gemma3ForCausalLM", more=_gemma3, added_to_norms=1.0),
    "phi3": Architecture(name="Phi3ForCausalLM", more=_phi3),
    "olmo2": Architecture(name="Olmo2ForCausalLM"),
    "granite": Architecture(name="GraniteForCausalLM", more=_granite, pairs_rows=True),
    "smollm3": Architecture(name="SmolLM3ForCausalLM", pairs_rows=True),
}

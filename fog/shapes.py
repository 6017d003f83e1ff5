"""Real models by shape: the part of their ``config.json`` that says what is computed.

For checkpoints of random weights that take the time and memory of the real ones. Sizes are
those of the planner's catalogue, but for one mixture of experts of our own; what only a runtime
needs is here, as the publishers' files state it. Token ids are those of `fog.made_tokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from fog.made_tokenizer import BOS_ID, EOS_ID

if TYPE_CHECKING:
    from planner.catalogue.models import CatalogueModel

_RUNTIME: Final[Mapping[str, Mapping[str, Any]]] = {
    "qwen2.5-0.5b": {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0},
    "tinyllama-1.1b": {"rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    "llama-3.2-1b": {
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "qwen3-0.6b": {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "attention_bias": False},
}

_OWN: Final[Mapping[str, Mapping[str, Any]]] = {
    # No published model: the smallest are too large for this. Attention as in qwen3-0.6b; like
    # Qwen3-30B-A3B an eighth of the experts works for a token. 2.7 GB in float32.
    "qwen3-moe-small": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 384,
        "norm_topk_prob": True,
        "num_experts": 32,
        "num_experts_per_tok": 4,
    },
}
_COMMON: Final[Mapping[str, Any]] = {
    "hidden_act": "silu",
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "torch_dtype": "bfloat16",
}


@cache
def shapes() -> Mapping[str, Mapping[str, Any]]:
    """Return the shapes by name, each a ``config.json``."""
    from planner.catalogue.models import load_models

    catalogue = load_models()
    published = {
        name: {**config_of(catalogue[name]), **runtime} for name, runtime in _RUNTIME.items()
    }
    return {name: {**config, **_COMMON} for name, config in {**published, **_OWN}.items()}


def config_of(model: CatalogueModel) -> dict[str, Any]:
    """Return the part of a model's ``config.json`` that its times and memory depend on."""
    architecture, model_type = _family_of(model)
    config: dict[str, Any] = {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": model_type,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied,
        "max_position_embeddings": model.context_limit,
    }
    if model.experts:
        config["num_experts_per_tok"] = model.active_experts
    if model_type == "gpt_oss":
        config |= {"num_local_experts": model.experts, "sliding_window": model.window}
    elif model.experts:
        config |= {
            "num_experts": model.experts,
            "moe_intermediate_size": model.expert_size,
            "norm_topk_prob": True,
        }
    return config


def _family_of(model: CatalogueModel) -> tuple[str, str]:
    """Return the architecture and type of a model, by what its blocks have."""
    if model.sinks:
        return "GptOss", "gpt_oss"
    if model.experts:
        return "Qwen3Moe", "qwen3_moe"
    family = "Qwen3" if model.qk_norm else "Qwen2" if model.qkv_bias else "Llama"
    return family, family.lower()

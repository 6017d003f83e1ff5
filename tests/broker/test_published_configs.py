"""One published model of each family: what its config.json says, field by field."""

from collections.abc import Mapping
from typing import Any, Final

import pytest

from broker.architecture import context_limit, parse_config, stage_bytes
from broker.model_config import (
    Activation,
    Experts,
    LayerConfig,
    Norms,
    QkNorm,
    Scales,
)
from broker.rope import Rope

# config.json as published on the hub, without keys that say nothing about the computation.
PUBLISHED: Final[Mapping[str, Mapping[str, Any]]] = {
    "Qwen/Qwen3-30B-A3B": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "allenai/OLMo-2-1124-7B": {
        "architectures": ["Olmo2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "eos_token_id": 100257,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "model_type": "olmo2",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 500000,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": 100352,
    },
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 49152,
    },
    "HuggingFaceTB/SmolLM3-3B": {
        "architectures": ["SmolLM3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "eos_token_id": 128012,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536,
        "max_window_layers": 28,
        "mlp_bias": False,
        "model_type": "smollm3",
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": 128256,
    },
    "ibm-granite/granite-3.1-2b-instruct": {
        "architectures": ["GraniteForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.1,
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "logits_scaling": 8.0,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "granite",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "residual_multiplier": 0.22,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 49155,
    },
    "microsoft/Phi-3-mini-4k-instruct": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "eos_token_id": 32000,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "model_type": "phi3",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 32064,
    },
    # Without the factors of contexts beyond the original one, which are not read.
    "microsoft/Phi-4-mini-instruct": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "eos_token_id": 199999,
        "full_attn_mod": 1,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "phi3",
        "num_attention_heads": 24,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 200064,
    },
    "google/gemma-2-2b": {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "torch_dtype": "float32",
        "vocab_size": 256000,
    },
    "google/gemma-3-1b-it": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16",
        "vocab_size": 262144,
    },
    "openai/gpt-oss-20b": {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "eos_token_id": 200002,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_key_value_heads": 8,
        "num_local_experts": 32,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 201088,
    },
}

# As their files have them, and as transformers builds these configs.
PARAMETERS: Final = {
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "ibm-granite/granite-3.1-2b-instruct": 2_533_531_648,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-3-1b-it": 999_885_952,
    "openai/gpt-oss-20b": 20_914_757_184,
}

GEMMAS_NORMS: Final = Norms(
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
GELU: Final = Activation("gelu_tanh")
YARN: Final = Rope(
    "yarn",
    theta=150000.0,
    factor=32.0,
    original_max_position_embeddings=4096,
    amplitude=1.3465735902799727,
    is_whole=False,
)
OWN_EXPERTS: Final = Experts(128, 8, 768, normalised=True)
PACKED_EXPERTS: Final = Experts(
    32,
    4,
    2880,
    normalised=True,
    router="router",
    has_router_bias=True,
    is_packed=True,
    is_mxfp4=True,
)

# What is not as in Llama.
DIFFERENCES: Final[Mapping[str, Mapping[str, Any]]] = {
    "Qwen/Qwen3-30B-A3B": {
        "qk_norm": QkNorm.HEAD,
        "layers": (LayerConfig(Rope(theta=1e6), experts=OWN_EXPERTS),) * 48,
    },
    "allenai/OLMo-2-1124-7B": {
        "qk_norm": QkNorm.ROW,
        "norms": Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    },
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        "layers": (LayerConfig(Rope(theta=1e5)),) * 30,
        "tie_word_embeddings": True,
    },
    "HuggingFaceTB/SmolLM3-3B": {
        "layers": (*(LayerConfig(Rope(theta=5e6)),) * 3, LayerConfig(None)) * 9,
        "tie_word_embeddings": True,
    },
    "ibm-granite/granite-3.1-2b-instruct": {
        "scales": Scales(embedding=12.0, residual=0.22, scores=0.015625, logits=0.125),
    },
    "microsoft/Phi-3-mini-4k-instruct": {
        "is_fused": True,
        "layers": (LayerConfig(Rope(), window=2047),) * 32,
    },
    "microsoft/Phi-4-mini-instruct": {
        "is_fused": True,
        "layers": (
            LayerConfig(
                Rope(
                    "longrope",
                    original_max_position_embeddings=4096,
                    # sqrt(1 + log(32) / log(4096))
                    amplitude=1.1902380714238083,
                    share=0.75,
                    factors=(1.0,) * 48,
                )
            ),
        )
        * 32,
        "max_position_embeddings": 4096,
    },
    "google/gemma-2-2b": {
        "norms": GEMMAS_NORMS,
        "norm_offset": 1.0,
        "activation": GELU,
        "layers": (LayerConfig(Rope(), window=4096), LayerConfig(Rope())) * 13,
        "scales": Scales(embedding=48.0, scores=0.0625, scores_cap=50.0, logits_cap=30.0),
        "tie_word_embeddings": True,
    },
    "google/gemma-3-1b-it": {
        "norms": GEMMAS_NORMS,
        "norm_offset": 1.0,
        "activation": GELU,
        "qk_norm": QkNorm.HEAD,
        "layers": (
            (*(LayerConfig(Rope(), window=512),) * 5, LayerConfig(Rope(theta=1e6))) * 4
            + (LayerConfig(Rope(), window=512),) * 2
        ),
        "scales": Scales(embedding=1152**0.5, scores=0.0625),
        "eos_token_ids": (1, 106),
    },
    "openai/gpt-oss-20b": {
        "has_sinks": True,
        "activation": Activation("silu", limit=7.0, slope=1.702),
        "qkv_bias": True,
        "output_bias": True,
        "layers": (
            LayerConfig(YARN, window=128, experts=PACKED_EXPERTS),
            LayerConfig(YARN, experts=PACKED_EXPERTS),
        )
        * 12,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_says_what_is_not_as_in_llama(name: str) -> None:
    config = parse_config(PUBLISHED[name])
    assert {key: getattr(config, key) for key in DIFFERENCES[name]} == DIFFERENCES[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_of_a_published_config_have_as_many_parameters_as_published(name: str) -> None:
    config = parse_config(PUBLISHED[name])
    total = stage_bytes(config, "float32", range(config.num_layers), embedding=True, head=True)
    assert total == 4 * PARAMETERS[name]


def test_longrope_is_served_within_the_context_that_the_model_began_with() -> None:
    assert context_limit(parse_config(PUBLISHED["microsoft/Phi-4-mini-instruct"])) == 4096


def test_blocks_of_gpt_oss_are_of_two_kinds() -> None:
    layers = parse_config(PUBLISHED["openai/gpt-oss-20b"]).layers
    assert [layer.kind for layer in layers[:3]] == ["sliding-moe", "full-moe", "sliding-moe"]

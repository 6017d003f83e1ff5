from collections.abc import Mapping
from typing import Any, Final

import pytest

from broker.architecture import (
    LayerConfig,
    ModelConfig,
    Rope,
    UnsupportedModelError,
    context_limit,
    parse_config,
    stage_bytes,
)
from broker.model_config import QkNorm
from tests.support.checkpoints import FAMILIES, newer_layout

# config.json as published on the hub, without keys that say nothing about the computation.
PUBLISHED: Final[Mapping[str, Mapping[str, Any]]] = {
    "meta-llama/Llama-2-7b-hf": {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": 32000,
    },
    "meta-llama/Llama-3.2-1B": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256,
    },
    "mistralai/Mistral-7B-v0.3": {
        "architectures": ["MistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 32768,
    },
    "Qwen/Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen/Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}

EXPECTED: Final[Mapping[str, ModelConfig]] = {
    "meta-llama/Llama-2-7b-hf": ModelConfig(
        family="llama",
        hidden_size=4096,
        intermediate_size=11008,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        vocab_size=32000,
        rms_norm_eps=1e-5,
        layers=(LayerConfig(Rope(kind="default", theta=10000.0)),) * 32,
        tie_word_embeddings=False,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        max_position_embeddings=4096,
        eos_token_ids=(2,),
        dtype="float16",
    ),
    "meta-llama/Llama-3.2-1B": ModelConfig(
        family="llama",
        hidden_size=2048,
        intermediate_size=8192,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        vocab_size=128256,
        rms_norm_eps=1e-5,
        layers=(
            LayerConfig(
                Rope(
                    kind="llama3",
                    theta=500000.0,
                    factor=32.0,
                    low_freq_factor=1.0,
                    high_freq_factor=4.0,
                    original_max_position_embeddings=8192,
                )
            ),
        )
        * 16,
        tie_word_embeddings=True,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        max_position_embeddings=131072,
        eos_token_ids=(128001,),
        dtype="bfloat16",
    ),
    "mistralai/Mistral-7B-v0.3": ModelConfig(
        family="mistral",
        hidden_size=4096,
        intermediate_size=14336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=32768,
        rms_norm_eps=1e-5,
        layers=(LayerConfig(Rope(kind="default", theta=1000000.0)),) * 32,
        tie_word_embeddings=False,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        max_position_embeddings=32768,
        eos_token_ids=(2,),
        dtype="bfloat16",
    ),
    "Qwen/Qwen2.5-0.5B": ModelConfig(
        family="qwen2",
        hidden_size=896,
        intermediate_size=4864,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        vocab_size=151936,
        rms_norm_eps=1e-6,
        layers=(LayerConfig(Rope(kind="default", theta=1000000.0)),) * 24,
        tie_word_embeddings=True,
        qkv_bias=True,
        output_bias=False,
        mlp_bias=False,
        max_position_embeddings=32768,
        eos_token_ids=(151643,),
        dtype="bfloat16",
    ),
    "Qwen/Qwen3-0.6B": ModelConfig(
        family="qwen3",
        hidden_size=1024,
        intermediate_size=3072,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151936,
        rms_norm_eps=1e-6,
        layers=(LayerConfig(Rope(kind="default", theta=1000000.0)),) * 28,
        tie_word_embeddings=True,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=QkNorm.HEAD,
        max_position_embeddings=40960,
        eos_token_ids=(151645,),
        dtype="bfloat16",
    ),
}

# As the hub counts them from the safetensors headers.
PARAMETERS: Final = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen3-0.6B": 596_049_920,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read_field_by_field(name: str) -> None:
    assert parse_config(PUBLISHED[name]) == EXPECTED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tensors_of_a_published_config_have_the_published_number_of_parameters(
    name: str,
) -> None:
    config = parse_config(PUBLISHED[name])
    total = stage_bytes(config, "float32", range(config.num_layers), embedding=True, head=True)
    assert total == 4 * PARAMETERS[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_layouts_of_a_config_say_the_same(family: str) -> None:
    old = FAMILIES[family]
    new = newer_layout(old)
    assert not {"rope_theta", "rope_scaling", "torch_dtype"} & set(new)
    assert parse_config(new) == parse_config(old)


@pytest.mark.parametrize(
    ("architecture", "field", "default"),
    [
        ("LlamaForCausalLM", "max_position_embeddings", 2048),
        ("LlamaForCausalLM", "num_kv_heads", 32),
        ("LlamaForCausalLM", "intermediate_size", 11008),
        ("LlamaForCausalLM", "rms_norm_eps", 1e-6),
        ("LlamaForCausalLM", "layers", (LayerConfig(Rope()),) * 32),
        ("MistralForCausalLM", "num_kv_heads", 8),
        ("MistralForCausalLM", "layers", (LayerConfig(Rope(), window=4096),) * 32),
        ("MistralForCausalLM", "max_position_embeddings", 131072),
        ("Qwen2ForCausalLM", "qkv_bias", True),
        ("Qwen2ForCausalLM", "vocab_size", 151936),
        ("Qwen3ForCausalLM", "head_dim", 128),
        ("Qwen3ForCausalLM", "tie_word_embeddings", False),
    ],
)
def test_an_absent_key_has_the_default_of_its_family(
    architecture: str, field: str, default: object
) -> None:
    assert getattr(parse_config({"architectures": [architecture]}), field) == default


def test_the_model_type_tells_the_family_where_no_architecture_is_named() -> None:
    assert parse_config({"model_type": "qwen3"}).family == "qwen3"


def test_a_window_as_large_as_the_context_is_no_window() -> None:
    config = {**FAMILIES["mistral"], "sliding_window": 512}
    assert {layer.window for layer in parse_config(config).layers} == {None}
    narrow = parse_config({**config, "sliding_window": 511})
    assert {layer.window for layer in narrow.layers} == {511}


def test_llama3_scaling_takes_the_context_as_original_where_none_is_named() -> None:
    scaling = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
    config = parse_config({**FAMILIES["llama"], "rope_scaling": scaling})
    rope = config.layers[0].rope
    assert rope is not None
    assert rope.original_max_position_embeddings == context_limit(config) == 512


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "quantization_config", {"quant_method": "gptq"}),
        ("llama", "hidden_act", "gelu"),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "rope_scaling", {"type": "xpos", "factor": 2.0}),
        ("llama", "rope_scaling", {"rope_type": "yarn", "beta_fast": 32.0}),
        ("phi4", "rope_scaling", {"type": "longrope", "short_factor": [1.0, 1.5]}),
        ("phi4", "rope_scaling", {"type": "longrope", "short_factor": [1.0, 1.5, -1.0]}),
        ("phi4", "partial_rotary_factor", 1.5),
        ("smollm3", "no_rope_layers", [1, 0]),
        ("gemma2", "hidden_activation", "relu"),
        ("gemma3", "use_bidirectional_attention", True),
        ("gemma3", "query_pre_attn_scalar", "auto"),
        ("gpt_oss", "quantization_config", {"quant_method": "fp8"}),
        ("gpt_oss", "quantization_config", "mxfp4"),
        ("granite", "logits_scaling", 0),
        ("llama", "rope_scaling", {"rope_type": "linear"}),
        ("llama", "rope_parameters", {"full_attention": {"rope_type": "default"}}),
        ("llama", "rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        ("llama", "attn_logit_softcapping", 50.0),
        ("llama", "num_local_experts", 8),
        ("llama", "num_hidden_layers", 0),
        ("llama", "vocab_size", "many"),
        ("llama", "hidden_size", True),
        ("llama", "rms_norm_eps", -1.0),
        ("llama", "head_dim", 7),
        ("llama", "num_key_value_heads", 4),
        ("llama", "eos_token_id", "</s>"),
        ("mistral", "attention_bias", True),
        ("mistral", "mlp_bias", True),
        ("mistral", "layer_types", ["full_attention"]),
        ("qwen2", "use_mrope", True),
        ("qwen2", "attention_bias", False),
        ("qwen2", "layer_types", ["full_attention", "chunked_attention"]),
        ("mistral", "layer_types", ["sliding_attention"] * 4),
        ("qwen3_moe", "num_experts_per_tok", 8),
        ("qwen3_moe", "mlp_only_layers", ["first"]),
        ("qwen3_moe", "moe_intermediate_size", None),
    ],
)
def test_a_key_that_changes_the_computation_is_refused_by_name(
    family: str, key: str, value: object
) -> None:
    config = {**FAMILIES[family], key: value}
    if key == "rope_parameters":
        config.pop("rope_theta")
    with pytest.raises(UnsupportedModelError, match=key):
        parse_config(config)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "quantization_config", None),
        ("llama", "partial_rotary_factor", 1.0),
        ("llama", "attention_bias", True),
        ("llama", "mlp_bias", True),
        ("llama", "attention_dropout", 0.1),
        ("llama", "hidden_act", "swish"),
        ("mistral", "layer_types", ["sliding_attention"] * 5),
        ("qwen2", "attention_bias", True),
        ("qwen3", "attention_bias", True),
        ("qwen3", "layer_types", ["full_attention"] * 5),
        ("qwen2", "use_sliding_window", True),
    ],
)
def test_a_key_with_a_value_that_is_computed_right_is_accepted(
    family: str, key: str, value: object
) -> None:
    assert parse_config({**FAMILIES[family], key: value}).num_layers == 5


def test_an_unknown_architecture_is_refused_with_the_ones_that_are_known() -> None:
    with pytest.raises(UnsupportedModelError, match=r"GPT2LMHeadModel.*LlamaForCausalLM"):
        parse_config({"architectures": ["GPT2LMHeadModel"]})
    with pytest.raises(UnsupportedModelError, match="model_type None"):
        parse_config({})

"""A model in a GGUF file gives what the same floats give in safetensors, to the last bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from broker.architecture import parse_config
from broker.model_config import ModelConfig
from broker.work import RequestKey
from nodes.weights import LayerWeights
from tests.support.gguf_files import write_twins
from tests.support.prepared import load_prepared, prepared_manifest
from tests.support.stages import build_stages, generate, open_request, prefill

PROMPT: Final = tuple(range(5, 82))
NUM_TOKENS: Final = 6
# What a GGUF file cannot say, llama.cpp knows by the name; the small checkpoints follow it.
FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "llama": {},
    "llama_linear": {},
    "llama_yarn": {"hidden_size": 96},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {},
    "qwen3_moe": {"mlp_only_layers": [], "moe_intermediate_size": 32},
    "gemma2": {"query_pre_attn_scalar": 10},
    "gemma3": {"query_pre_attn_scalar": 10, "sliding_window_pattern": 6},
    "phi3": {},
    "phi4": {
        "head_dim": 8,
        "num_attention_heads": 8,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.2, 1.5],
            "long_factor": [1.0, 4.0, 16.0],
            "attention_factor": 1.25,
        },
    },
    "olmo2": {},
    "granite": {},
    "smollm3": {"no_rope_layers": None},
    "gpt_oss": {},
}


def apart(config: ModelConfig) -> ModelConfig:
    """Return a config in which each expert has matrices of its own, as all have in GGUF."""
    layers = [
        replace(layer, experts=layer.experts and replace(layer.experts, is_packed=False))
        for layer in config.layers
    ]
    return replace(config, layers=tuple(layers))


def answer_of(weights: LayerWeights, cuts: tuple[int, ...] = ()) -> list[int]:
    return generate(build_stages(weights, cuts), PROMPT, NUM_TOKENS)


def logits_of(weights: LayerWeights) -> torch.Tensor:
    stages, key = build_stages(weights), RequestKey("logits", 0)
    open_request(stages, key, len(PROMPT))
    return prefill(stages, key, PROMPT)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_metadata_of_a_family_say_what_its_config_says(family: str, tmp_path: Path) -> None:
    path, twin = write_twins(tmp_path, family, **FAMILIES[family])
    found, expected = (parse_config(prepared_manifest(each).config) for each in (path, twin))
    assert apart(found) == apart(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_in_gguf_answers_as_in_safetensors(family: str, tmp_path: Path) -> None:
    path, twin = write_twins(tmp_path, family, **FAMILIES[family])
    ours, expected = load_prepared(path), load_prepared(twin)
    assert torch.equal(logits_of(ours), logits_of(expected))
    assert answer_of(ours, (2,)) == answer_of(expected)


def test_a_model_in_several_files_answers_as_in_one(tmp_path: Path) -> None:
    path, twin = write_twins(tmp_path, "qwen3_moe", tensors_per_file=20, **FAMILIES["qwen3_moe"])
    ours, expected = load_prepared(path), load_prepared(twin)
    assert torch.equal(logits_of(ours), logits_of(expected))
    assert answer_of(ours, (2,)) == answer_of(expected)


@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "Q4_K", "Q6_K", "MXFP4"]
)
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_every_kind_of_elements_is_read_exactly(kind: str, weights: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
    path, twin = write_twins(tmp_path, "llama", kind, **sizes)
    ours, expected = load_prepared(path, weights), load_prepared(twin, weights)
    assert torch.equal(logits_of(ours), logits_of(expected))


def test_factors_of_llama_3_rotate_as_its_parameters_do(tmp_path: Path) -> None:
    path, twin = write_twins(tmp_path, "llama3", attention_bias=False, mlp_bias=False)
    ours, expected = load_prepared(path), load_prepared(twin)
    torch.testing.assert_close(logits_of(ours), logits_of(expected), rtol=0, atol=1e-4)
    assert answer_of(ours) == answer_of(expected)

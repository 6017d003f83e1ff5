"""Models of no family here answer with the tokens of transformers, whole and in stages."""

import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file

from broker.architecture import UnsupportedModelError, parse_config, stage_bytes
from broker.work import RequestKey
from gateway.model import ModelRefusedError
from nodes.measure import measure
from nodes.weights import LayerWeights
from tests.support.oracle import Oracle
from tests.support.prepared import load_prepared, prepared_manifest
from tests.support.stages import (
    MemoryTensors,
    build_stages,
    generate,
    open_request,
    prefill,
)
from tests.support.ties import assert_same_tokens

NUM_TOKENS: Final = 12
PROMPT: Final = tuple(range(5, 82))
_SHAPE: Final[dict[str, Any]] = {
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OTHERS: Final[dict[str, dict[str, Any]]] = {
    # Attention and feed-forward part beside each other, norms with a mean, scaled logits, tied.
    "cohere": {**_SHAPE, "logit_scale": 0.4},
    # One matrix for queries, keys and values, head by head; some dimensions rotated; biases.
    "gpt_neox": {
        **_SHAPE,
        "num_key_value_heads": None,
        "hidden_act": "gelu",
        "rotary_pct": 0.5,
    },
    # A feed-forward part without gate, windows in all layers.
    "starcoder2": {**_SHAPE, "sliding_window": 40},
    "stablelm": {**_SHAPE, "use_qkv_bias": True, "partial_rotary_factor": 0.5},
}


def write_other(folder: Path, kind: str, **changes: Any) -> Path:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    values = {**OTHERS.get(kind, _SHAPE), **changes}
    config = CONFIG_MAPPING[kind](**{k: v for k, v in values.items() if v is not None})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim == 1 else 1.6 / parameter.shape[1] ** 0.5
            parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, spread)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda kind: write_other(tmp_path_factory.mktemp(kind), kind))


@pytest.mark.parametrize("kind", OTHERS)
def test_tokens_are_those_of_transformers_whole_and_in_stages(
    folder_of: Callable[[str], Path], kind: str
) -> None:
    folder = folder_of(kind)
    reference = Oracle(folder).generate(PROMPT, NUM_TOKENS)
    weights = load_prepared(folder)
    for cuts in ((), (2,), (1, 3), (1, 2, 3)):
        tokens = generate(build_stages(weights, cuts), PROMPT, NUM_TOKENS)
        assert_same_tokens(tokens, reference.tokens, reference.gaps, f"{kind}/{cuts}")


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_other_formats_are_near_the_floats_and_the_same_in_two(
    folder_of: Callable[[str], Path], weights: str
) -> None:
    folder = folder_of("cohere")
    exact, rounded = load_prepared(folder), load_prepared(folder, weights)
    key = RequestKey("near", 0)
    logits = []
    for store in (exact, rounded):
        stages = build_stages(store)
        open_request(stages, key, len(PROMPT))
        logits.append(prefill(stages, key, PROMPT))
    assert torch.cosine_similarity(logits[0], logits[1], dim=0) > 0.99
    whole = generate(build_stages(rounded), PROMPT, NUM_TOKENS)
    assert generate(build_stages(rounded, (2,)), PROMPT, NUM_TOKENS) == whole


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_memory_is_what_planning_counts(folder_of: Callable[[str], Path], weights: str) -> None:
    for kind in OTHERS:
        store = load_prepared(folder_of(kind), weights)
        layers = range(store.config.num_layers)
        assert store.num_bytes == stage_bytes(
            store.config, weights, layers, embedding=True, head=True
        )


def test_a_stage_reads_the_tensors_of_its_layers_alone(folder_of: Callable[[str], Path]) -> None:
    manifest = prepared_manifest(folder_of("gpt_neox"))
    config = parse_config(manifest.config)
    source = MemoryTensors(load_file(folder_of("gpt_neox") / "model.safetensors"))
    LayerWeights(config, source).add(1)
    assert source.asked
    assert all(name.startswith("gpt_neox.layers.1.") for name in source.asked)


def test_such_a_model_is_measured_like_all(folder_of: Callable[[str], Path]) -> None:
    config = parse_config(prepared_manifest(folder_of("starcoder2")).config)
    calibration = measure(config, "float32", budget_seconds=0.05)
    assert set(calibration.blocks) == {layer.kind for layer in config.layers} == {"sliding-other0"}


# --- what is refused ------------------------------------------------------------------------


def test_without_transformers_the_architecture_and_the_remedy_are_named(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of("cohere")
    described = parse_config(prepared_manifest(folder).config)
    monkeypatch.setitem(sys.modules, "transformers", None)
    remedy = r"CohereForCausalLM .*e2llm\[transformers\]"
    with pytest.raises(ModelRefusedError, match=remedy):
        prepared_manifest(folder)
    with pytest.raises(UnsupportedModelError, match=remedy):
        LayerWeights(described, MemoryTensors({})).add(0)


def test_a_model_that_transformers_does_not_know_is_refused_by_name(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folder_of("cohere"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    unknown = {"architectures": ["UnheardOfForCausalLM"], "model_type": "unheard-of"}
    (folder / "config.json").write_text(json.dumps({**config, **unknown}))
    with pytest.raises(ModelRefusedError, match=r"UnheardOfForCausalLM .*does not know .*newer"):
        prepared_manifest(folder)


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        # Positions are added to scores.
        ("bloom", {"n_head": 6, "n_layer": 2}, "BloomForCausalLM .*take no rotated positions"),
        # Its config has other keys.
        ("codegen", {"n_head": 6, "n_layer": 2, "rotary_dim": 4}, "CodeGenForCausalLM .*cannot"),
        # The file has a tensor for each expert, transformers one for all.
        ("mixtral", {"num_local_experts": 3}, "this engine converts none"),
        # It says that all heads have keys of their own.
        ("gpt_neox", {"num_key_value_heads": 2}, r"keys and values of .*\(6, 8\)"),
    ],
)
def test_what_cannot_be_run_by_layers_is_refused_with_the_reason(
    kind: str, changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises((ModelRefusedError, UnsupportedModelError), match=why):
        load_prepared(write_other(tmp_path / kind, kind, **changes))


def test_a_block_that_was_dropped_comes_again(folder_of: Callable[[str], Path]) -> None:
    store = load_prepared(folder_of("gpt_neox"))
    expected = generate(build_stages(store), PROMPT, NUM_TOKENS)
    store.drop(1)
    store.add(1)
    assert generate(build_stages(store), PROMPT, NUM_TOKENS) == expected

"""Our tokens against those of transformers, for every family, however the model is cut."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from broker.architecture import parse_config
from broker.plan import LayerRange
from broker.work import RequestKey, Sampling
from nodes.checkpoint import TensorSource
from nodes.executor import StageExecutor
from nodes.sampler import choose
from nodes.weights import LayerWeights
from tests.support.checkpoints import FAMILIES, manifest_of, newer_layout, write_checkpoint
from tests.support.oracle import Oracle, Reference
from tests.support.stages import (
    build_stages,
    continue_answer,
    cut_layers,
    decode,
    fill_weights,
    generate,
    open_request,
    prefill,
)
from tests.support.ties import assert_same_tokens

NUM_TOKENS: Final = 24
# Shorter than a chunk, on the grid's edge, and over several chunks and sliding windows.
PROMPT_LENGTHS: Final = (3, 32, 77)


@cache
def prompt_of(length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randint(3, 259, (length,), generator=generator).tolist())


class Family:
    """A checkpoint on disk, our weights of it, and the answers of transformers."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = write_checkpoint(folder, name)
        self.oracle = Oracle(self.folder)
        self.weights = load_folder(self.folder)
        self.references = {
            n: self.oracle.generate(prompt_of(n), NUM_TOKENS) for n in PROMPT_LENGTHS
        }


def load_folder(folder: Path, weights: str = "float32") -> LayerWeights:
    manifest = manifest_of(folder)
    config = parse_config(manifest.config)
    return fill_weights(LayerWeights(config, TensorSource(manifest), weights))


@pytest.fixture(scope="module")
def family_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    return cache(lambda name: Family(tmp_path_factory.mktemp(name), name))


@pytest.mark.parametrize("length", PROMPT_LENGTHS)
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(
    family_of: Callable[[str], Family], name: str, length: int
) -> None:
    family = family_of(name)
    tokens = generate(build_stages(family.weights), prompt_of(length), NUM_TOKENS)
    reference = family.references[length]
    assert_same_tokens(tokens, reference.tokens, reference.gaps, f"{name}/{length}")


@pytest.mark.parametrize("cuts", [(2,), (1, 4), (1, 2, 3, 4)], ids=["2", "3", "5"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_in_stages_gives_the_tokens_of_transformers(
    family_of: Callable[[str], Family], name: str, cuts: Sequence[int]
) -> None:
    family = family_of(name)
    reference = family.references[77]
    tokens = generate(build_stages(family.weights, cuts), prompt_of(77), NUM_TOKENS)
    assert_same_tokens(tokens, reference.tokens, reference.gaps, name)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers_at_every_position(
    family_of: Callable[[str], Family], name: str
) -> None:
    family = family_of(name)
    prompt = prompt_of(77)
    stages, key = build_stages(family.weights), RequestKey("r", 0)
    open_request(stages, key, len(prompt))
    rows = [stages[0].prefill(key, stages[0].embed(prompt[i : i + 32]), i) for i in (0, 32, 64)]
    ours = stages[0].logits(torch.cat(rows))
    torch.testing.assert_close(ours, family.oracle.logits(prompt), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_kv_moved_to_stages_that_are_cut_otherwise_gives_the_same_tokens(
    family_of: Callable[[str], Family], name: str
) -> None:
    family = family_of(name)
    prefill_stages = build_stages(family.weights, (2,))
    decode_stages = build_stages(family.weights, (1, 4))
    key = RequestKey("moved", 0)
    for length, reference in family.references.items():
        prompt = prompt_of(length)
        open_request(prefill_stages, key, length)
        open_request(decode_stages, key, length + NUM_TOKENS)
        first = int(prefill(prefill_stages, key, prompt).argmax())
        move_kv(prefill_stages, decode_stages, key, length)
        for stage in prefill_stages:
            stage.release(key)
        tokens = continue_answer(decode_stages, key, prompt, [first], NUM_TOKENS, Sampling())
        for stage in decode_stages:
            stage.release(key)
        assert_same_tokens(tokens, reference.tokens, reference.gaps, f"{name}/{length}")


def move_kv(
    senders: Sequence[StageExecutor],
    receivers: Sequence[StageExecutor],
    key: RequestKey,
    length: int,
) -> None:
    """Send KV that decode will see, in pieces of 20 positions, last piece first."""
    for sender in senders:
        for receiver in receivers:
            layers = sender.layers.overlap(receiver.layers)
            if layers is None:
                continue
            for layer in range(layers.start, layers.end):
                one = LayerRange(layer, layer + 1)
                (first,) = receiver.first_positions(one, length)
                for start in reversed(range(first, length, 20)):
                    meta, data = sender.read_kv(key, one, start, min(start + 20, length))
                    receiver.write_kv(key, one, start, bytes(data), meta)
    for receiver in receivers:
        receiver.set_length(key, length)


@pytest.mark.parametrize("name", FAMILIES)
def test_requests_decoded_together_get_the_tokens_that_they_get_alone(
    family_of: Callable[[str], Family], name: str
) -> None:
    family = family_of(name)
    stages = build_stages(family.weights, (3,))
    keys = {RequestKey(f"r{length}", 0): length for length in PROMPT_LENGTHS}
    answers: dict[RequestKey, list[int]] = {}
    for key, length in keys.items():
        open_request(stages, key, length + NUM_TOKENS)
        answers[key] = [int(prefill(stages, key, prompt_of(length)).argmax())]
    for _ in range(NUM_TOKENS - 1):
        logits = decode(stages, list(keys), [answer[-1] for answer in answers.values()])
        for answer, row in zip(answers.values(), logits, strict=True):
            answer.append(choose(row, Sampling(), (), (), 0))
    for key, length in keys.items():
        reference = family.references[length]
        assert_same_tokens(answers[key], reference.tokens, reference.gaps, f"{name}/{length}")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_newer_layout_of_a_config_gives_the_same_tokens(
    family_of: Callable[[str], Family], name: str, tmp_path: Path
) -> None:
    family = family_of(name)
    folder = write_checkpoint(tmp_path / name, name)
    config = newer_layout(FAMILIES[name])
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    reference = family.references[77]
    ours = generate(build_stages(load_folder(folder)), prompt_of(77), NUM_TOKENS)
    theirs = Oracle(folder).generate(prompt_of(77), NUM_TOKENS)
    assert theirs.tokens == reference.tokens
    assert_same_tokens(ours, reference.tokens, reference.gaps, name)


VARIANTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "tied mistral": ("mistral", {"tie_word_embeddings": True}),
    "mistral without a window": ("mistral", {"sliding_window": 512}),
    # Of one, transformers keeps everything: it slices its cache from -0 on.
    "mistral with a window of two": ("mistral", {"sliding_window": 2}),
    "qwen3 with bias": ("qwen3", {"attention_bias": True}),
    "llama with one key head": ("llama", {"num_key_value_heads": 1}),
    "untied qwen2": ("qwen2", {"tie_word_embeddings": False}),
    "qwen2 without windows": ("qwen2", {"use_sliding_window": False}),
    "experts with windows": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 11}),
    "experts that all work": ("qwen3_moe_sparse", {"num_experts_per_tok": 5}),
    "one expert for each row": ("qwen3_moe", {"num_experts_per_tok": 1, "norm_topk_prob": None}),
    # What a family's small config has one way only, the other way.
    "tied qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "tied olmo2": ("olmo2", {"tie_word_embeddings": True, "head_dim": 12}),
    "tied phi3": ("phi3", {"tie_word_embeddings": True, "head_dim": 12}),
    "tied gpt-oss": ("gpt_oss", {"tie_word_embeddings": True}),
    "untied smollm3": ("smollm3", {"tie_word_embeddings": False, "head_dim": 12}),
    "untied granite": ("granite", {"tie_word_embeddings": False, "head_dim": 12}),
    "untied gemma2": ("gemma2", {"tie_word_embeddings": False}),
    "untied gemma3": ("gemma3", {"tie_word_embeddings": False}),
    "large heads of qwen2": ("qwen2", {"head_dim": 12}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_a_family_give_the_tokens_of_transformers(variant: str, tmp_path: Path) -> None:
    name, changes = VARIANTS[variant]
    folder = write_checkpoint(tmp_path, name, seed=3, num_files=1, **changes)
    reference: Reference = Oracle(folder).generate(prompt_of(77), NUM_TOKENS)
    tokens = generate(build_stages(load_folder(folder), (2,)), prompt_of(77), NUM_TOKENS)
    assert_same_tokens(tokens, reference.tokens, reference.gaps, variant)


def test_a_bfloat16_checkpoint_is_computed_in_float32(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "llama", dtype=torch.bfloat16, torch_dtype="bfloat16")
    reference = Oracle(folder).generate(prompt_of(77), NUM_TOKENS)
    tokens = generate(build_stages(load_folder(folder)), prompt_of(77), NUM_TOKENS)
    assert_same_tokens(tokens, reference.tokens, reference.gaps)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe"])
def test_bfloat16_is_as_close_to_float32_as_that_of_transformers(name: str, tmp_path: Path) -> None:
    # Experts of another size are refused by the kernel that transformers uses.
    folder = write_checkpoint(tmp_path, name, moe_intermediate_size=32)
    key, prompt = RequestKey("r", 0), prompt_of(32)
    exact = Oracle(folder).logits(prompt)
    (stage,) = build_stages(load_folder(folder, "bfloat16"), kv_format="bfloat16")
    stage.open(key, len(prompt))
    ours = stage.logits(stage.prefill(key, stage.embed(prompt), 0))
    theirs = Oracle(folder, torch.bfloat16).logits(prompt)

    def error(logits: torch.Tensor) -> float:
        # Of a row in the middle: where rounding chooses another expert, a row is far off.
        return float((logits - exact).square().mean(1).median())

    assert 0 < error(ours) < 1.5 * error(theirs)


def test_layer_ranges_cover_what_the_cuts_leave() -> None:
    assert cut_layers(5, (1, 4)) == [LayerRange(0, 1), LayerRange(1, 4), LayerRange(4, 5)]

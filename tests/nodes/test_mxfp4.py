"""Experts of gpt-oss as they are published: numbers of four bits beside their scales."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from broker.architecture import parse_config, stage_tensor_names
from broker.plan import LayerRange
from nodes.blocks import WrongShapeError
from nodes.checkpoint import TensorSource
from nodes.mxfp4 import mxfp4_floats
from nodes.weights import LayerWeights
from tests.support.checkpoints import (
    FAMILIES,
    manifest_of,
    random_tensors,
    write_checkpoint,
    write_tensors,
)
from tests.support.stages import build_stages, fill_weights, generate

SIZES: Final[dict[str, Any]] = {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 3}
CONFIG: Final[dict[str, Any]] = {**FAMILIES["gpt_oss"], **SIZES}
MXFP4: Final = {"quantization_config": {"quant_method": "mxfp4"}}
PROMPT: Final = tuple(range(5, 45))


def random_bytes(shape: tuple[int, ...], lowest: int, end: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(lowest, end, shape, generator=generator).to(torch.uint8)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a checkpoint in MXFP4, and one of the same floats."""
    published = write_checkpoint(tmp_path_factory.mktemp("published"), "gpt_oss", **SIZES)
    floats = write_checkpoint(tmp_path_factory.mktemp("floats"), "gpt_oss", **SIZES)
    (published / "config.json").write_text(json.dumps({**CONFIG, **MXFP4}))
    stored, plain = random_tensors(CONFIG), random_tensors(CONFIG)
    for seed, name in enumerate(name for name in plain if name.endswith(("_up_proj", "down_proj"))):
        experts, columns, rows = stored.pop(name).shape
        blocks = random_bytes((experts, rows, columns // 32, 16), 0, 256, seed)
        scales = random_bytes((experts, rows, columns // 32), 121, 124, seed)
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        matrices = [mxfp4_floats(*pair).t() for pair in zip(blocks, scales, strict=True)]
        plain[name] = torch.stack(matrices)
    write_tensors(published, stored, num_files=2)
    write_tensors(floats, plain, num_files=2)
    return published, floats


def load(folder: Path, weights: str) -> LayerWeights:
    manifest = manifest_of(folder)
    config = parse_config(manifest.config)
    return fill_weights(LayerWeights(config, TensorSource(manifest), weights))


def test_every_byte_stands_for_the_floats_that_transformers_reads() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.arange(256).to(torch.uint8).view(2, 8, 1, 16)
    scales = random_bytes((2, 8, 1), 90, 160, 0)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    found = [mxfp4_floats(*pair).t() for pair in zip(blocks, scales, strict=True)]
    assert torch.equal(torch.stack(found), expected)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_the_published_form_answers_as_its_floats(twins: tuple[Path, Path], weights: str) -> None:
    published, floats = (load(folder, weights) for folder in twins)
    expected = generate(build_stages(floats), PROMPT, 8)
    assert generate(build_stages(published), PROMPT, 8) == expected
    assert generate(build_stages(published, (2,)), PROMPT, 8) == expected


def test_a_stage_asks_for_the_experts_of_its_layers_alone(twins: tuple[Path, Path]) -> None:
    config = parse_config(manifest_of(twins[0]).config)
    names = stage_tensor_names(config, LayerRange(1, 2), embedding=False, head=False)
    experts = [name for name in names if ".experts." in name and "bias" not in name]
    prefix = "model.layers.1.mlp.experts"
    assert experts == [
        f"{prefix}.{matrix}_{part}"
        for matrix in ("gate_up_proj", "down_proj")
        for part in ("blocks", "scales")
    ]


def test_both_forms_are_held_in_as_many_bytes(twins: tuple[Path, Path]) -> None:
    published, floats = (load(folder, "int8") for folder in twins)
    assert published.num_bytes == floats.num_bytes


def test_blocks_of_another_shape_are_refused_by_name(
    twins: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, "gpt_oss", **SIZES)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **MXFP4}))
    stored = random_tensors(CONFIG)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stored[f"{name}_blocks"] = torch.zeros((3, 64, 2, 8), dtype=torch.uint8)
    stored[f"{name}_scales"] = torch.zeros((3, 64, 2), dtype=torch.uint8)
    write_tensors(folder, stored, num_files=2)
    manifest = manifest_of(folder)
    weights = LayerWeights(parse_config(manifest.config), TensorSource(manifest))
    with pytest.raises(WrongShapeError, match=f"{name}_blocks"):
        weights.add(0)

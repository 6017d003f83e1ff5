"""Where each tensor of a model lies in its GGUF file, under its name in transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from broker.architecture import (
    ModelConfig,
    TensorSpec,
    UnsupportedModelError,
    block_tensors,
    embedding_tensors,
    head_tensors,
    parse_config,
)
from gateway.checkpoint import Checkpoint, TensorPlace
from gateway.gguf.architectures import Architecture, architecture_of, config_of
from gateway.gguf.file import GgufFile, GgufTensor, read_gguf
from gateway.model import ModelRefusedError

# All experts of a layer are one tensor, one after the other.
_EXPERT: Final = re.compile(r"(.+\.experts\.)(\d+)\.(.+)")
_ROTATED: Final = re.compile(r".+\.([qk])_proj\.(weight|bias)")


def read_gguf_checkpoint(path: Path) -> Checkpoint:
    """Read the head of a GGUF file, or of all files of a model that comes in several.

    Raises:
        ModelRefusedError: It is damaged, or of an architecture that is not supported.
    """
    file = read_gguf(path)
    raw = config_of(file)
    try:
        config = parse_config(raw)
    except UnsupportedModelError as error:
        raise ModelRefusedError(f"{path}: {error}") from error
    return Checkpoint(
        folder=path.parent,
        config=raw,
        files=file.files,
        tensors=_places(file, config),
        cut_off=(),
        gguf=file,
    )


def _places(file: GgufFile, config: ModelConfig) -> dict[str, TensorPlace]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = architecture_of(file)
    arch = next(a for a, name in MODEL_ARCH_NAMES.items() if name == file.metadata.architecture)
    names = get_tensor_name_map(arch, config.num_layers)
    groups = [embedding_tensors(config), head_tensors(config)]
    groups += [block_tensors(config, layer) for layer in range(config.num_layers)]
    places = {}
    for spec in (spec for group in groups for spec in group.values()):
        expert = _EXPERT.fullmatch(spec.name)
        whole = expert[1] + expert[3] if expert else spec.name
        # The package maps names of modules; parameters that are no module's weight, too, which
        # have an ending in the file all the same.
        known = names.get_name(whole, (".weight", ".bias")) or ""
        tensor = file.tensors.get(known) or file.tensors.get(f"{known}.weight")
        if tensor is not None:
            number = int(expert[2]) if expert else None
            places[spec.name] = _place(file, architecture, config, spec, tensor, number)
    return places


def _place(
    file: GgufFile,
    architecture: Architecture,
    config: ModelConfig,
    spec: TensorSpec,
    tensor: GgufTensor,
    expert: int | None,
) -> TensorPlace:
    shape, offset, num_bytes = tensor.shape, tensor.offset, tensor.num_bytes
    if expert is not None:
        shape, num_bytes = shape[1:], num_bytes // shape[0]
        offset += expert * num_bytes
    if shape != spec.shape:
        raise ModelRefusedError(
            f"{file.path}: tensor {tensor.name} has shape {tensor.shape}, its metadata imply "
            f"{spec.shape} for {spec.name}; download it again"
        )
    paired_heads = 0
    if architecture.pairs_rows and (rotated := _ROTATED.fullmatch(spec.name)):
        paired_heads = config.num_heads if rotated[1] == "q" else config.num_kv_heads
    return TensorPlace(
        name=spec.name,
        file=tensor.file,
        offset=offset,
        num_bytes=num_bytes,
        dtype=tensor.kind,
        shape=shape,
        paired_heads=paired_heads,
        added=architecture.added_to_norms if spec.name.endswith("norm.weight") else 0.0,
    )

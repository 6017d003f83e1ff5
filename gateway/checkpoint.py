"""Reads where each tensor of a safetensors checkpoint lies. No tensor is loaded.

The format: eight bytes with the header's length, little-endian, the header in JSON, then
the tensors' bytes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from gateway.gguf.file import GgufFile
from gateway.model import ModelRefusedError

_LENGTH: Final = struct.Struct("<Q")
# The format's own limit; more means that these eight bytes are something else.
_MAX_HEADER_BYTES: Final = 100_000_000
_INDEX: Final = "model.safetensors.index.json"
_BITS: Final = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "BF16": 16, "F16": 16,
    "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One tensor in a file; ``offset`` counts from the start of the file.

    The rest is as in `broker.control.TensorInfo`.
    """

    name: str
    file: str
    offset: int
    num_bytes: int
    dtype: str
    shape: tuple[int, ...]
    paired_heads: int = 0
    added: float = 0.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder as found.

    Attributes:
        config: ``config.json``, unchanged, or what a GGUF file says in its place.
        files: Names of the files with weights.
        tensors: Every tensor whose bytes are there.
        cut_off: Names of tensors that lie beyond the end of their file.
        gguf: What all of this comes from; None: files as transformers has them.
    """

    folder: Path
    config: dict[str, Any]
    files: tuple[str, ...]
    tensors: dict[str, TensorPlace]
    cut_off: tuple[str, ...]
    gguf: GgufFile | None = None


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read config and headers of a model folder.

    Raises:
        ModelRefusedError: The folder is no checkpoint in safetensors, or a header is damaged.
    """
    config = _read_config(folder)
    files = _weight_files(folder)
    tensors: dict[str, TensorPlace] = {}
    cut_off = []
    for file in files:
        size = (folder / file).stat().st_size
        for place in read_header(folder / file):
            if place.name in tensors:
                raise ModelRefusedError(
                    f"{folder}: tensor {place.name} is both in {tensors[place.name].file} and "
                    f"in {file}; remove the files that do not belong to this model"
                )
            if place.offset + place.num_bytes > size:
                cut_off.append(place.name)
            else:
                tensors[place.name] = place
    return Checkpoint(folder, config, files, tensors, tuple(cut_off))


def read_header(path: Path) -> list[TensorPlace]:
    """Return the places of the tensors in one file, in the header's order.

    Raises:
        ModelRefusedError: The header is damaged.
    """
    with path.open("rb") as file:
        prefix = file.read(_LENGTH.size)
        if len(prefix) < _LENGTH.size:
            raise _damaged(path, f"it has only {len(prefix)} bytes")
        (length,) = _LENGTH.unpack(prefix)
        if length > _MAX_HEADER_BYTES:
            raise _damaged(path, f"its header would have {length} bytes")
        text = file.read(length)
    if len(text) < length:
        raise _damaged(path, f"its header has {len(text)} of {length} bytes")
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("it is not an object")
        header.pop("__metadata__", None)
        data_start = _LENGTH.size + length
        return [_place(path.name, name, entry, data_start) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__} in its header: {error}") from error


def _place(file: str, name: str, entry: dict[str, Any], data_start: int) -> TensorPlace:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    dtype = entry["dtype"]
    if not all(isinstance(number, int) and number >= 0 for number in (start, end, *shape)):
        raise ValueError(f"tensor {name} has an offset or size that is no natural number")
    bits = _BITS.get(dtype)
    if end < start or (bits is not None and end - start != prod(shape) * bits // 8):
        raise ValueError(
            f"tensor {name} of shape {list(shape)} and type {dtype} cannot have {end - start} bytes"
        )
    return TensorPlace(name, file, data_start + start, end - start, dtype, shape)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelRefusedError(
            f"{folder} is not a model folder: it has no config.json (give the folder of a "
            "Hugging Face checkpoint, or a hub id such as owner/name)"
        )
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelRefusedError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ModelRefusedError(f"{path} is damaged: it is not a JSON object")
    return config


def _weight_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the safetensors files that belong to the model."""
    index = folder / _INDEX
    if index.is_file():
        try:
            files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelRefusedError(f"{index} is damaged: {error!r}") from error
        for file in files:
            # The index is foreign: a name in it must not lead out of the folder.
            if not isinstance(file, str) or Path(file).name != file:
                raise ModelRefusedError(f"{index} names {file!r}, which is no file name")
            if not (folder / file).is_file():
                raise ModelRefusedError(
                    f"{folder / file} is missing, though {_INDEX} names it; download it again"
                )
        return tuple(files)
    if (folder / "model.safetensors").is_file():
        # Some checkpoints hold their weights twice, also as `consolidated.safetensors`.
        return ("model.safetensors",)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        others = sorted(path.name for pattern in ("*.bin", "*.pt") for path in folder.glob(pattern))
        found = f"it has {', '.join(others[:3])}" if others else "it has no weights"
        raise ModelRefusedError(
            f"{folder} has no .safetensors file ({found}); save the checkpoint with "
            "transformers' save_pretrained, which writes safetensors"
        )
    return tuple(files)


def _damaged(path: Path, why: str) -> ModelRefusedError:
    return ModelRefusedError(f"{path} is damaged or cut off: {why}; download it again")

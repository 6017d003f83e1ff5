"""`e2llm make-model`: a checkpoint of a real shape with random weights, for measuring speed.

Written piece by piece in bfloat16, as published checkpoints are, so it takes little memory
whatever the shape. Equal seeds give equal files.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from broker.architecture import (
    ModelConfig,
    TensorSpec,
    block_tensors,
    embedding_tensors,
    head_tensors,
    parse_config,
)
from fog.made_tokenizer import BOS_ID, EOS_ID, write_tokenizer

SHARD_BYTES: Final = 1 << 30
_ITEM_BYTES: Final = 2
_PIECE_ELEMENTS: Final = 1 << 22

Progress = Callable[[int], None]
"""Called with the number of bytes that were just written."""


class NotEmptyError(Exception):
    """The folder holds something already; nothing is overwritten."""


class NoRoomError(OSError):
    """The disk has less free than the checkpoint takes. The message has both, and the remedy."""


@dataclass(frozen=True, slots=True)
class MadeModel:
    """What was written: parameters, bytes of tensors, and files that hold them."""

    num_parameters: int
    num_bytes: int
    num_files: int


def checkpoint_bytes(config: Mapping[str, Any]) -> int:
    """Return the bytes of all tensors."""
    return sum(_num_bytes(spec) for spec in _specs(parse_config(config)))


def make_model(
    config: Mapping[str, Any],
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> MadeModel:
    """Write config, weights and tokenizer into ``folder``.

    Args:
        config: ``config.json``, for example of `fog.shapes`.
        folder: Is made; must not hold anything.
        seed: Of the weights.
        progress: Told about bytes as they are written.
        shard_bytes: Largest file, unless one tensor alone is larger.

    What was written is removed again when not all of it could be, or somebody interrupts.

    Raises:
        NotEmptyError, NoRoomError: As they say; nothing was written.
        OSError: The disk became full, or writing is not allowed.
    """
    is_new = not folder.exists()
    if not is_new and (not folder.is_dir() or any(folder.iterdir())):
        raise NotEmptyError(f"{folder} holds something already; choose an empty or new folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _check_room(folder, checkpoint_bytes(config))
        return _write(config, folder, seed, progress or _ignore, shard_bytes)
    except BaseException:  # an interrupt leaves as much behind as an error
        for path in folder.iterdir():
            path.unlink()
        if is_new:
            folder.rmdir()
        raise


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoRoomError(
            f"{needed} bytes ({needed / 1e9:.2f} GB) are needed, {free} ({free / 1e9:.2f} GB) are "
            "free; free some, or choose a smaller shape or a folder on another disk"
        )


def _write(
    config: Mapping[str, Any], folder: Path, seed: int, progress: Progress, shard_bytes: int
) -> MadeModel:
    specs = _specs(parse_config(config))
    shards = list(_shards(specs, shard_bytes))
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        name = name if len(shards) > 1 else "model.safetensors"
        with (folder / name).open("wb") as file:
            _write_shard(file, shard, seed, progress)
        places.update(dict.fromkeys((spec.name for spec in shard), name))
    total = sum(map(_num_bytes, specs))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "generation_config.json", {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID})
    write_tokenizer(folder, int(config["vocab_size"]))
    # Last: a folder without it is nobody's model, so one that was interrupted is none.
    _write_json(folder / "config.json", config)
    return MadeModel(total // _ITEM_BYTES, total, len(shards))


def _specs(config: ModelConfig) -> list[TensorSpec]:
    groups = [embedding_tensors(config)]
    groups += [block_tensors(config, layer) for layer in range(config.num_layers)]
    groups += [head_tensors(config)]
    # A tied head is the embedding's tensor.
    return list({spec.name: spec for group in groups for spec in group.values()}.values())


def _num_bytes(spec: TensorSpec) -> int:
    return _ITEM_BYTES * math.prod(spec.shape)


def _shards(specs: Sequence[TensorSpec], limit: int) -> Iterator[list[TensorSpec]]:
    shard: list[TensorSpec] = []
    for spec in specs:
        if shard and sum(map(_num_bytes, shard)) + _num_bytes(spec) > limit:
            yield shard
            shard = []
        shard.append(spec)
    yield shard


def _write_shard(
    file: BinaryIO, specs: Sequence[TensorSpec], seed: int, progress: Progress
) -> None:
    """Write the safetensors format: length of the header, header, bytes of all tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        start, end = end, end + _num_bytes(spec)
        header[spec.name] = {"dtype": "BF16", "shape": spec.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for spec in specs:
        for piece in _pieces(spec, seed):
            file.write(piece)
            progress(len(piece))


def _pieces(spec: TensorSpec, seed: int) -> Iterator[bytes]:
    """Yield a tensor's bytes; the values depend on seed and name alone."""
    rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    left = math.prod(spec.shape)
    while left:
        values = rng.standard_normal(min(left, _PIECE_ELEMENTS), np.float32)
        left -= len(values)
        yield _bfloat16(_scaled(spec, values)).tobytes()


def _scaled(spec: TensorSpec, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the values a spread with which hidden states neither vanish nor explode."""
    if spec.name.endswith("norm.weight"):
        return 1 + np.float32(0.1) * values
    if spec.name.endswith(".bias"):
        return np.float32(0.1) * values
    return values * np.float32(1 / math.sqrt(spec.shape[1]))


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    bits = bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))
    return (bits >> 16).astype("<u2")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _ignore(num_bytes: int) -> None:
    """Progress that nobody asked for."""

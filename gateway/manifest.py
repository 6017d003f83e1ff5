"""A model on disk to the manifest that nodes load from: places, checksums, revision."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.architecture import (
    ModelConfig,
    UnsupportedModelError,
    parse_config,
    stage_tensor_names,
)
from broker.codec import encode_control
from broker.control import ModelManifest, TensorInfo
from broker.limits import DEFAULT_MAX_PAYLOAD_BYTES
from broker.plan import LayerRange
from broker.registry import UnknownArchitectureError
from gateway.checkpoint import Checkpoint, TensorPlace, read_checkpoint
from gateway.gguf.checkpoint import read_gguf_checkpoint
from gateway.gguf.file import gguf_file
from gateway.model import ModelRefusedError
from gateway.other_models import described_for_transformers, has_transformers

_FLOATS: Final = ("F64", "F32", "F16", "BF16")
_READ_BYTES: Final = 4 * 1024 * 1024
_REVISION_DIGITS: Final = 20
_ADDRESSES_BYTES: Final = 64 << 10  # signed URLs of the files, which come later

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class PreparedManifest:
    """A manifest without URLs, and what is wrong with the checkpoint that it describes.

    Attributes:
        problems: Sentences that name tensors which the model needs and the folder lacks.
            The manifest is published all the same: the nodes that need them say so, too.
    """

    manifest: ModelManifest
    problems: tuple[str, ...]
    checkpoint: Checkpoint


def prepare_manifest(
    model: Path,
    *,
    name: str,
    weights: str,
    kv_format: str,
    kv_transfer: str = "exact",
    cache: Path,
    progress: Progress = lambda ratio: None,
) -> PreparedManifest:
    """Read a model.

    Args:
        model: A folder with ``config.json`` and safetensors files or with one GGUF file, or
            such a file.
        name: That clients use.
        weights: Format in which nodes hold weights.
        kv_format: Format of the KV cache.
        kv_transfer: How KV travels between replicas.
        cache: File that keeps checksums between starts.
        progress: Told 0..1 while checksums are computed, which takes about 1 s per GB.

    Raises:
        ModelRefusedError: No checkpoint, a damaged one, or one that is not supported.
    """
    file = gguf_file(model.absolute())
    checkpoint = read_checkpoint(model.resolve()) if file is None else read_gguf_checkpoint(file)
    try:
        raw, config = _parsed(checkpoint)
    except UnsupportedModelError as error:
        raise ModelRefusedError(f"{model}: {error}") from error
    layers = LayerRange(0, config.num_layers)
    needed = stage_tensor_names(config, layers, embedding=True, head=True)
    problems = tuple(_problems(checkpoint, needed))
    # Other tensors, of an adapter or of a tied head saved twice, are nobody's.
    places = [checkpoint.tensors[name] for name in needed if name in checkpoint.tensors]
    checksums = _checksums(checkpoint, places, cache, progress)
    tensors = {
        place.name: TensorInfo(
            file=place.file,
            offset=place.offset,
            num_bytes=place.num_bytes,
            dtype=place.dtype,
            shape=place.shape,
            checksum=checksums[place.name],
            paired_heads=place.paired_heads,
            added=place.added,
        )
        for place in places
    }
    manifest = ModelManifest(
        name=name,
        revision=revision(raw, tensors),
        config=raw,
        tensors=tensors,
        weights=weights,
        kv_format=kv_format,
        kv_transfer=kv_transfer,
        folder=str(checkpoint.folder),
        tokenizer=_tokenizer(checkpoint),
    )
    size = len(encode_control(manifest))
    if size > DEFAULT_MAX_PAYLOAD_BYTES - _ADDRESSES_BYTES:
        raise ModelRefusedError(
            f"{model}: its {len(tensors)} tensors take {size} bytes to describe, more than a "
            "message may have; choose a model with fewer, larger tensors"
        )
    return PreparedManifest(manifest, problems, checkpoint)


def _parsed(checkpoint: Checkpoint) -> tuple[dict[str, object], ModelConfig]:
    """Return the config that is published, and what it says.

    A model of no family here is described by its tensors, for the engine that runs such models.

    Raises:
        UnsupportedModelError: It is not supported.
    """
    raw = checkpoint.config
    try:
        return raw, parse_config(raw)
    except UnknownArchitectureError as error:
        if not has_transformers():
            raise
        places = checkpoint.tensors.values()
        shapes = {place.name: place.shape for place in places if place.dtype in _FLOATS}
        try:
            described = described_for_transformers(raw, shapes)
            return described, parse_config(described)
        except UnsupportedModelError as why:
            raise UnsupportedModelError(
                f"{error}; transformers is here, but cannot run this one by ranges of layers: {why}"
            ) from why


def revision(config: dict[str, object], tensors: dict[str, TensorInfo]) -> str:
    """Return a hash over config and tensors: equal revisions are equal models.

    How the tensors are spread over files does not matter, their bytes, types and shapes do.
    """
    content = [config, [[name, *_meaning(info)] for name, info in sorted(tensors.items())]]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_REVISION_DIGITS]


def _tokenizer(checkpoint: Checkpoint) -> TensorInfo | None:
    path = checkpoint.folder / "tokenizer.json"
    # Beside a GGUF file, it may be another model's.
    return whole_file(path) if path.is_file() and checkpoint.gguf is None else None


def whole_file(path: Path) -> TensorInfo:
    """Describe a file as one tensor of bytes, as nodes read ``tokenizer.json`` for grammars."""
    data = path.read_bytes()
    return TensorInfo(
        file=path.name,
        offset=0,
        num_bytes=len(data),
        dtype="U8",
        shape=(len(data),),
        checksum=hashlib.sha256(data).hexdigest(),
    )


def _meaning(info: TensorInfo) -> list[object]:
    """Return all of a tensor but its place."""
    changes = [info.paired_heads, info.added]
    return [info.dtype, info.shape, info.checksum, *(changes if any(changes) else ())]


def _problems(checkpoint: Checkpoint, needed: Iterable[str]) -> Iterable[str]:
    lacking = [name for name in needed if name not in checkpoint.tensors]
    for state, names in (
        ("cut off", [name for name in lacking if name in checkpoint.cut_off]),
        ("missing", [name for name in lacking if name not in checkpoint.cut_off]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield (
                f"the checkpoint in {checkpoint.folder} has tensors {state}: "
                f"{', '.join(names[:3])}{more}; download it again"
            )


# --- checksums ----------------------------------------------------------------------------


def _checksums(
    checkpoint: Checkpoint, places: list[TensorPlace], cache: Path, progress: Progress
) -> dict[str, str]:
    """Return the SHA-256 of each tensor, from the cache for files that did not change."""
    stamps = {file: _stamp(checkpoint.folder / file) for file in checkpoint.files}
    known = _read_cache(cache)
    found: dict[str, str] = {}
    total = sum(place.num_bytes for place in places)
    done = 0
    for place in places:
        stored = known.get(stamps[place.file], {}).get(place.name)
        if stored is None:
            stored = _sha256(checkpoint.folder / place.file, place)
            known.setdefault(stamps[place.file], {})[place.name] = stored
        found[place.name] = stored
        done += place.num_bytes
        progress(done / total if total else 1.0)
    current = {stamp: known[stamp] for stamp in stamps.values() if stamp in known}
    _write_cache(cache, current)
    return found


def _stamp(path: Path) -> str:
    """Return what changes when a file does: its path, size and time of change."""
    stat = path.stat()
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}"


def _sha256(path: Path, place: TensorPlace) -> str:
    digest = hashlib.sha256()
    remaining = place.num_bytes
    with path.open("rb") as file:
        file.seek(place.offset)
        while remaining:
            chunk = file.read(min(remaining, _READ_BYTES))
            if not chunk:
                raise ModelRefusedError(f"{path} became shorter while it was read")
            digest.update(chunk)
            remaining -= len(chunk)
    return digest.hexdigest()


def _read_cache(path: Path) -> dict[str, dict[str, str]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}  # absent or damaged: computed again
    return content if isinstance(content, dict) else {}


def _write_cache(path: Path, content: dict[str, dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Replaced in one step: a gateway that is stopped here leaves no half of it.
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content), "utf-8")
    temporary.replace(path)

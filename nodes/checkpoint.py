"""Reads single tensors of a checkpoint: from its folder, from a cache, or over HTTP ranges.

A node fetches exactly the bytes of the tensors that it holds, never whole files. Every
tensor's SHA-256 is checked, wherever it came from. Knows nothing of layers or of MQTT.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from broker.control import ModelManifest, TensorInfo
from nodes.ranges import RangeError, RangeReader, shown_url

logger = logging.getLogger(__name__)

STORED_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_SHA256: Final = re.compile(r"[0-9a-f]{64}")

Progress = Callable[[int], None]
"""Called with the number of bytes that just arrived."""


class TensorError(Exception):
    """A tensor could not be had; the message names tensor, place and remedy."""


class MissingTensorError(TensorError):
    """The tensor is nowhere to be found, or no place lets this node read it."""


class DamagedTensorError(TensorError):
    """Bytes came, but not those that the manifest describes."""


class TensorSource:
    """The tensors of one model.

    Args:
        manifest: Says where each tensor lies, its shape and its checksum.
        cache_folder: Keeps what came over HTTP, by checksum; None keeps nothing.
        progress: Told about bytes as they arrive.
        reader: Reads byte ranges over HTTP.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        *,
        cache_folder: Path | None = None,
        progress: Progress | None = None,
        reader: RangeReader | None = None,
    ) -> None:
        self._manifest = manifest
        self._cache_folder = cache_folder
        self._progress = progress or _ignore
        self._reader = reader or RangeReader()

    def load_tensor(self, name: str) -> torch.Tensor:
        """Return a tensor in the dtype in which the checkpoint stores it.

        Raises:
            MissingTensorError: The manifest lacks it, or no place gave it.
            DamagedTensorError: All that came differs from the manifest.
        """
        info = self._manifest.tensors.get(name)
        if info is None:
            raise MissingTensorError(
                f"model {self._manifest.name} has no tensor {name}; "
                "the checkpoint is incomplete or of another architecture, fetch it again"
            )
        dtype = _check(name, info)
        data = self._read(name, info)
        if not data:
            return torch.empty(info.shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).view(info.shape)

    def _read(self, name: str, info: TensorInfo) -> bytearray:
        folder = Path(self._manifest.folder) if self._manifest.folder else None
        if folder is not None and folder.is_dir():
            return self._read_folder(folder, name, info)
        cached = self._read_cache(info)
        if cached is not None:
            self._progress(len(cached))
            return cached
        data = self._read_urls(name, info)
        self._write_cache(info, data)
        return data

    def _read_folder(self, folder: Path, name: str, info: TensorInfo) -> bytearray:
        path = folder / info.file
        data = bytearray(info.num_bytes)
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(info.offset)
                num_read = read_into(file.readinto, data)
        except OSError as error:
            raise MissingTensorError(
                f"tensor {name}: cannot read {path}: {error.strerror or error}; "
                "put the file back or fetch the checkpoint again"
            ) from error
        if num_read < len(data) or not _is_intact(data, info):
            raise DamagedTensorError(
                f"tensor {name} in {path} at byte {info.offset} differs from the manifest; "
                "fetch the file again and restart the gateway"
            )
        self._progress(len(data))
        return data

    def _read_urls(self, name: str, info: TensorInfo) -> bytearray:
        urls = self._manifest.urls.get(info.file, [])
        if not urls:
            raise MissingTensorError(
                f"tensor {name}: folder {self._manifest.folder} does not exist here and the "
                f"manifest has no URL for {info.file}; is the gateway serving weights?"
            )
        problems, damaged = [], False
        for url in urls:
            # A damaged range once more from the same place: it may have been the way.
            for _ in range(2):
                data = bytearray(info.num_bytes)
                try:
                    self._reader.read(url, info.offset, data, self._progress)
                except RangeError as error:
                    problems.append(f"{shown_url(url)}: {error}")
                    break
                if _is_intact(data, info):
                    return data
                damaged = True
                problems.append(f"{shown_url(url)}: checksum differs")
                # It will come again, and counts once.
                self._progress(-info.num_bytes)
        kind = DamagedTensorError if damaged else MissingTensorError
        remedy = (
            "the file on the server is not the one of the manifest, restart the gateway"
            if damaged
            else "check that the gateway runs and that its address is reachable from here"
        )
        raise kind(f"tensor {name} of {info.file}: {'; '.join(problems)}; {remedy}")

    # --- cache ------------------------------------------------------------------------

    def _cache_path(self, info: TensorInfo) -> Path | None:
        if self._cache_folder is None:
            return None
        return self._cache_folder / info.checksum[:2] / info.checksum

    def _read_cache(self, info: TensorInfo) -> bytearray | None:
        path = self._cache_path(info)
        if path is None:
            return None
        try:
            data = bytearray(path.read_bytes())
        except OSError:
            return None
        if not _is_intact(data, info):
            logger.warning("cached tensor %s is damaged and is fetched again", path.name)
            return None
        return data

    def _write_cache(self, info: TensorInfo, data: bytearray) -> None:
        path = self._cache_path(info)
        if path is None:
            return
        temporary: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Renamed when complete, so several nodes of one host can share the folder.
            handle, temporary = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(temporary).replace(path)
        except OSError as error:
            # The tensor is here; only the next start will fetch it again.
            logger.warning("cannot cache tensors in %s: %s", self._cache_folder, error)
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)


def _check(name: str, info: TensorInfo) -> torch.dtype:
    """Return the tensor's dtype after checking what the manifest says of it."""
    dtype = STORED_DTYPES.get(info.dtype)
    if dtype is None:
        raise DamagedTensorError(
            f"tensor {name} has dtype {info.dtype}, supported are {', '.join(STORED_DTYPES)}; "
            "choose a checkpoint that is not quantised"
        )
    expected = math.prod(info.shape) * dtype.itemsize
    if expected != info.num_bytes:
        raise DamagedTensorError(
            f"tensor {name}: {info.num_bytes} bytes for shape {info.shape} of {info.dtype}, "
            f"expected {expected}; the file's header is damaged, fetch {info.file} again"
        )
    # The manifest comes over the network: neither may lead out of its folder.
    if Path(info.file).name != info.file:
        raise DamagedTensorError(f"tensor {name}: {info.file!r} is not the name of a file")
    if not _SHA256.fullmatch(info.checksum):
        raise DamagedTensorError(f"tensor {name}: {info.checksum!r} is not a SHA-256 checksum")
    return dtype


def read_into(readinto: Callable[[memoryview], int | None], data: bytearray) -> int:
    """Fill ``data`` and return how much of it could be filled."""
    view, position = memoryview(data), 0
    while position < len(data):
        count = readinto(view[position:])
        if not count:
            break
        position += count
    return position


def _is_intact(data: bytearray, info: TensorInfo) -> bool:
    return len(data) == info.num_bytes and hashlib.sha256(data).hexdigest() == info.checksum


def _ignore(num_bytes: int) -> None:
    """Progress that nobody asked for."""

"""Reads single tensors of a checkpoint: from its folder, from a cache, or over HTTP ranges.

A node fetches exactly the bytes of the tensors that it holds, never whole files. Every
tensor's SHA-256 is checked, wherever it came from. Knows nothing of layers or of MQTT.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

from broker.control import ModelManifest, TensorInfo
from nodes.fetcher import (
    DamagedTensorError,
    Fetcher,
    GivenUpError,
    MissingTensorError,
    Progress,
    TensorError,
)
from nodes.landing import MemoryLanding, read_into, sha256_hex
from nodes.read_log import ReadLog
from nodes.stored import Stored, UnknownKindError, stored_bytes, stored_tensor
from nodes.supply import Supply
from nodes.tensor_urls import CHECKSUM

__all__ = [
    "DamagedTensorError",
    "GivenUpError",
    "MissingTensorError",
    "Progress",
    "TensorError",
    "TensorSource",
]

logger = logging.getLogger(__name__)


class TensorSource:
    """The tensors of one model; several threads may read at once.

    Args:
        manifest: Says where each tensor lies, its shape and its checksum.
        supply: Where tensors are kept, and who else has them; None: only those that the
            manifest names, and nothing is kept.
        progress: Told about bytes as they arrive.
        log: Told what came from where.
        awaited: Tensors that other devices are about to read, with these devices' names: they
            hand them on when they have them.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        supply: Supply | None = None,
        progress: Progress | None = None,
        log: ReadLog | None = None,
        awaited: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log or ReadLog()
        self._manifest = manifest
        self._supply = supply or Supply()
        self._progress = progress or _ignore
        self._given_up = threading.Event()
        self._fetcher = Fetcher(manifest, self._supply, self._progress, self.log, self._given_up)
        self._awaited = dict(awaited or {})
        # Came ahead of time, and has been counted.
        self._fetched: set[str] = set()
        self._folder = _folder_here(manifest)

    @property
    def fetches_ahead(self) -> bool:
        """Whether `fetch` is of use."""
        return self._folder is None and self._supply.cache is not None

    def num_bytes(self, name: str) -> int:
        """Return what a tensor takes as it is stored; 0 when it is unknown."""
        info = self._manifest.tensors.get(name)
        return 0 if info is None else info.num_bytes

    def give_up(self) -> None:
        """Nobody wants anything any more; what is being fetched stays as far as it came."""
        self._given_up.set()

    def fetch(self, name: str) -> None:
        """Bring a tensor into the cache, if that can be; `load_tensor` reads it there.

        Raises:
            TensorError, GivenUpError: As `load_tensor` does.
        """
        info = self._describe(name)
        self._fetch(name, info)

    def _fetch(self, name: str, info: TensorInfo) -> None:
        cache = self._supply.cache
        if self._folder is not None or cache is None or cache.find(info) is not None:
            return
        # Before the file is locked: who is waited for may share the folder.
        self._await(name, info)
        try:
            with cache.receive(info, self._fetcher.pause) as landing:
                if landing is not None:
                    self._fetcher.fetch(name, info, landing)
                    self._fetched.add(name)
        except OSError as error:
            # It will come into memory; only the next start has to fetch it again.
            logger.warning("cannot cache tensors in %s: %s", cache.folder, error)

    def load_tensor(self, name: str) -> Stored:
        """Return a tensor as the checkpoint stores it.

        Raises:
            MissingTensorError: The manifest lacks it, or no place gave it.
            DamagedTensorError: All that came differs from the manifest.
            GivenUpError: Nobody wants it any more.
        """
        info = self._describe(name)
        return stored_tensor(info, self._read(name, info))

    def load_tokenizer(self) -> bytes:
        """Return the content of ``tokenizer.json``; raises as `load_tensor` does."""
        info = self._manifest.tokenizer
        if info is None:
            raise MissingTensorError(
                f"model {self._manifest.name} comes without its tokenizer.json; install the "
                "release of this node on the gateway as well"
            )
        _check_place(info.file, info)
        if self._folder is not None and not (self._folder / info.file).is_file():
            # Of a model in a GGUF file: the gateway has made it, and gives it.
            return bytes(self._read_elsewhere(info.file, info))
        return bytes(self._read(info.file, info))

    def _describe(self, name: str) -> TensorInfo:
        info = self._manifest.tensors.get(name)
        if info is None:
            raise MissingTensorError(
                f"model {self._manifest.name} has no tensor {name}; "
                "the checkpoint is incomplete or of another architecture, fetch it again"
            )
        _check(name, info)
        return info

    def _read(self, name: str, info: TensorInfo) -> bytearray:
        if self._folder is not None:
            return self._read_folder(self._folder, name, info)
        return self._read_elsewhere(name, info)

    def _read_elsewhere(self, name: str, info: TensorInfo) -> bytearray:
        data = self._read_cache(name, info)
        if data is None:
            self._fetch(name, info)
            data = self._read_cache(name, info)
        if data is None:
            self._await(name, info)
            landing = MemoryLanding(info)
            self._fetcher.fetch(name, info, landing)
            data = landing.data
        return data

    def _await(self, name: str, info: TensorInfo) -> None:
        device, cache = self._awaited.pop(name, None), self._supply.cache
        if device is not None:
            self._fetcher.wait_for(
                device, name, lambda: cache is not None and cache.find(info) is not None
            )

    def _read_cache(self, name: str, info: TensorInfo) -> bytearray | None:
        data = None if self._supply.cache is None else self._supply.cache.read(info)
        if data is not None and name not in self._fetched:
            self._count("cache", len(data))
        return data

    def _count(self, source: str, num_bytes: int) -> None:
        self.log.add(source, num_bytes)
        self._progress(num_bytes)

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
        self._count("folder", len(data))
        return data


def _folder_here(manifest: ModelManifest) -> Path | None:
    folder = Path(manifest.folder) if manifest.folder else None
    return folder if folder is not None and folder.is_dir() else None


def _check(name: str, info: TensorInfo) -> None:
    """Check what the manifest says of a tensor."""
    try:
        expected = stored_bytes(info)
    except UnknownKindError as error:
        raise DamagedTensorError(f"tensor {name}: {error}") from error
    if expected != info.num_bytes:
        raise DamagedTensorError(
            f"tensor {name}: {info.num_bytes} bytes for shape {info.shape} of {info.dtype}, "
            f"expected {expected}; the file's header is damaged, fetch {info.file} again"
        )
    if info.paired_heads and (not info.shape or info.shape[0] % (2 * info.paired_heads)):
        raise DamagedTensorError(
            f"tensor {name}: {info.shape} is not made of {info.paired_heads} heads of pairs"
        )
    _check_place(name, info)


def _check_place(name: str, info: TensorInfo) -> None:
    """Refuse what would lead out of a folder: the manifest comes over the network."""
    if Path(info.file).name != info.file:
        raise DamagedTensorError(f"tensor {name}: {info.file!r} is not the name of a file")
    if not CHECKSUM.fullmatch(info.checksum):
        raise DamagedTensorError(f"tensor {name}: {info.checksum!r} is not a SHA-256 checksum")


def _is_intact(data: bytearray, info: TensorInfo) -> bool:
    return len(data) == info.num_bytes and sha256_hex(data) == info.checksum


def _ignore(num_bytes: int) -> None:
    """Progress that nobody asked for."""

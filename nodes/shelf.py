"""Tensors whose bytes this device hands on: from the model's folder, or from its cache.

Only what was announced is given, and only to who knows the key of its model's manifest.
Written by the threads that load and listen, read by those that serve: each change is a new
mapping.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.control import ModelManifest, TensorInfo, TensorOffer
from nodes.neighbours import ranges_of
from nodes.tensor_cache import TensorCache
from nodes.tensor_urls import asked_tensor

# Others may still have the manifest before the newest one.
_NUM_KEYS: Final = 2


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of one tensor in a file."""

    path: Path
    offset: int
    num_bytes: int


class Shelf:
    """What one device hands on.

    Args:
        url: Under which others reach it.
        cache: What came over HTTP.
    """

    def __init__(self, url: str, cache: TensorCache | None) -> None:
        self._url = url
        self._cache = cache
        self._keys: dict[str, tuple[str, ...]] = {}
        self._places: dict[str, dict[str, Place]] = {}
        self._ranges: dict[str, list[tuple[int, int]]] = {}

    def learn_manifest(self, manifest: ModelManifest) -> None:
        """A model is served, or its key was renewed."""
        known = self._keys.get(manifest.revision, ())
        if manifest.tensor_key and manifest.tensor_key not in known:
            keys = (manifest.tensor_key, *known)[:_NUM_KEYS]
            self._keys = {**self._keys, manifest.revision: keys}

    def stock(self, manifest: ModelManifest) -> None:
        """See what of a model is here now."""
        tensors = manifest.tensors
        places = {}
        positions = []
        for position, name in enumerate(sorted(tensors)):
            place = self._place(manifest, tensors[name])
            if place is not None:
                positions.append(position)
                places[tensors[name].checksum] = place
        self._places = {**self._places, manifest.revision: places}
        self._ranges = {**self._ranges, manifest.revision: ranges_of(positions)}

    def offer(self, session: int) -> TensorOffer:
        """Return what is announced."""
        tensors = {revision: ranges for revision, ranges in self._ranges.items() if ranges}
        return TensorOffer(session=session, url=self._url, tensors=tensors)

    def find(self, target: str) -> Place | None:
        """Return where the tensor is that a request's target names, if it may have it."""
        for revision, places in self._places.items():
            checksum = asked_tensor(target, self._keys.get(revision, ()))
            if checksum in places:
                return places[checksum]
        return None

    def _place(self, manifest: ModelManifest, info: TensorInfo) -> Place | None:
        if manifest.folder is not None:
            path = Path(manifest.folder) / info.file
            # Whoever reads it checks it; here it is enough that the file may hold it.
            if path.is_file() and path.stat().st_size >= info.offset + info.num_bytes:
                return Place(path, info.offset, info.num_bytes)
        path_in_cache = None if self._cache is None else self._cache.find(info)
        return None if path_in_cache is None else Place(path_in_cache, 0, info.num_bytes)

"""All that a node knows of where tensors come from, from one order to the next."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlsplit
from zlib import crc32

from broker.control import HubPlace, ModelManifest, TensorInfo
from nodes.neighbours import Neighbours
from nodes.ranges import RangeReader
from nodes.sources import Kind, Source, SourceBook
from nodes.tensor_cache import TensorCache
from nodes.tensor_urls import tensor_url

_DEFAULT_ENDPOINT: Final = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How this device reaches a hub: the variables of ``huggingface_hub``.

    Attributes:
        endpoint: Instead of the one of a manifest; None: that.
        token: Goes to ``endpoint``, or to the default one, and to nobody else.
        is_offline: No hub is asked.
    """

    endpoint: str | None = None
    token: str | None = field(default=None, repr=False)
    is_offline: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> HubAccess:
        """Read ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE``."""
        return cls(
            endpoint=environ.get("HF_ENDPOINT", "").rstrip("/") or None,
            token=environ.get("HF_TOKEN") or None,
            is_offline=environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"},
        )

    def source(self, place: HubPlace, info: TensorInfo) -> Source:
        """Return where a hub has a tensor."""
        endpoint = self.endpoint or place.endpoint
        # A manifest must not be able to send our token to a host of its own.
        is_ours = endpoint == (self.endpoint or _DEFAULT_ENDPOINT)
        path = "/".join(
            quote(part)
            for part in (
                *place.repository.split("/"),
                "resolve",
                place.revision,
                *(part for part in place.folder.split("/") if part),
                info.file,
            )
        )
        return Source(
            name=f"hub {_host(endpoint)}",
            kind=Kind.HUB,
            url=f"{endpoint}/{path}",
            first_byte=info.offset,
            token=self.token if is_ours else None,
        )


@dataclass(frozen=True)
class Supply:
    """Where tensors come from, beside the folder of a model.

    Attributes:
        cache: Keeps what came over HTTP; None: nothing is kept.
        neighbours: Who announced what.
        book: Who is asked, and who rests.
        hub: How hubs are reached; None: not at all.
    """

    cache: TensorCache | None = None
    neighbours: Neighbours = field(default_factory=Neighbours)
    book: SourceBook = field(default_factory=SourceBook)
    reader: RangeReader = field(default_factory=RangeReader)
    hub: HubAccess | None = None

    def sources(
        self, manifest: ModelManifest, position: int | None, info: TensorInfo
    ) -> list[Source]:
        """Return all who may have a tensor.

        Args:
            manifest: Of the model.
            position: Of the tensor among the model's sorted names; None: it is none of them,
                and no neighbour hands it on.
            info: Of the tensor.
        """
        found = []
        if manifest.tensor_key and position is not None:
            found = [
                Source(
                    name=f"neighbour {neighbour.device}",
                    kind=Kind.NEIGHBOUR,
                    url=tensor_url(neighbour.url, manifest.tensor_key, info.checksum),
                )
                for neighbour in self.neighbours.holders(manifest.revision, position)
            ]
            # Another one first for each tensor, so that all work when several nodes load.
            found.sort(key=lambda source: crc32(f"{source.name} {info.checksum}".encode()))
        found += [
            Source(f"gateway {_host(url)}", Kind.GATEWAY, url, info.offset)
            for url in manifest.urls.get(info.file, ())
        ]
        if manifest.hub is not None and self.hub is not None and not self.hub.is_offline:
            found.append(self.hub.source(manifest.hub, info))
        return found


def _host(url: str) -> str:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2]

"""A neighbour that hands on what it has, with the parts that nodes use, on loopback."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from broker.control import ModelManifest, TensorOffer
from nodes.checkpoint import TensorSource
from nodes.neighbours import Neighbours
from nodes.ranges import RangeReader
from nodes.shelf import Shelf
from nodes.supply import Supply
from nodes.tensor_cache import TensorCache
from nodes.tensor_server import TensorServer
from tests.support.checkpoints import manifest_of
from tests.support.stored import floats_of

KEY = "between nodes"


@contextmanager
def sharing(manifest: ModelManifest, cache: TensorCache | None = None) -> Iterator[TensorOffer]:
    """Hand on all of ``manifest`` that is in its folder or in the cache."""
    server = TensorServer("127.0.0.1", 0)
    shelf = Shelf(f"http://127.0.0.1:{server.port}", cache)
    shelf.learn_manifest(manifest)
    shelf.stock(manifest)
    server.start(shelf)
    try:
        yield shelf.offer(session=1)
    finally:
        server.stop()


def manifest_elsewhere(folder: Path, *urls: str, **changes: Any) -> ModelManifest:
    """Describe ``folder`` to a node of another machine, with the base URLs of its gateways."""
    files = {path.name: [f"{url}/{path.name}" for url in urls] for path in folder.glob("*.safet*")}
    return manifest_of(folder, **{"folder": None, "urls": files, "tensor_key": KEY, **changes})


def everything(manifest: ModelManifest, url: str) -> TensorOffer:
    """Return the offer of somebody who claims to have all of a model."""
    return TensorOffer(
        session=1, url=url, tensors={manifest.revision: [(0, len(manifest.tensors))]}
    )


def supply_of(offers: dict[str, TensorOffer], cache: Path | None = None) -> Supply:
    """Return the supply of a node that has heard the offers, by device."""
    neighbours = Neighbours("self")
    for device, offer in offers.items():
        neighbours.hear(device, offer)
    return Supply(
        None if cache is None else TensorCache(cache),
        neighbours,
        reader=RangeReader(wait=lambda seconds: None),
    )


def read_all(source: TensorSource, manifest: ModelManifest) -> dict[str, bytes]:
    """Return the bytes of every tensor."""
    return {
        name: floats_of(source.load_tensor(name)).numpy().tobytes() for name in manifest.tensors
    }


def wait_for_threads(prefix: str) -> None:
    """Return when no thread of that name runs any more."""
    for thread in threading.enumerate():
        if thread.name.startswith(prefix):
            thread.join(20)

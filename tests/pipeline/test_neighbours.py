"""Whole services: a second node takes its layers from the first, and the gateway rests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.codec import decode_control
from broker.control import TensorOffer
from broker.plan import Role
from broker.topics import DEVICE_TENSORS
from broker.work import Sampling
from gateway.requests import Generation
from nodes.loader import Loader
from nodes.neighbours import Neighbours
from nodes.shelf import Shelf
from nodes.supply import Supply
from nodes.tensor_cache import TensorCache
from nodes.tensor_server import TensorServer
from tests.support.checkpoints import write_checkpoint
from tests.support.node_rig import InlineLoader
from tests.support.pipeline import make_replica
from tests.support.range_server import RangeServer, serve_ranges
from tests.support.real_fog import MemoryFog
from tests.support.sharing import manifest_elsewhere

PROMPT = tuple(range(3, 60))


class SharingFog(MemoryFog):
    """Nodes with caches of their own that hand weights on."""

    servers: dict[str, TensorServer]

    def _loader(self, device: str) -> Loader:
        cache = TensorCache(self.folder / device)
        server = TensorServer("127.0.0.1", 0)
        shelf = Shelf(f"http://127.0.0.1:{server.port}", cache)
        server.start(shelf)
        self.servers = {**getattr(self, "servers", {}), device: server}
        return InlineLoader(supply=Supply(cache, Neighbours(device)), shelf=shelf)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RangeServer]:
    with serve_ranges(write_checkpoint(tmp_path / "model")) as server:
        yield server


async def test_a_second_node_takes_its_layers_from_the_first(
    tmp_path: Path, gateway: RangeServer
) -> None:
    manifest = manifest_elsewhere(tmp_path / "model", gateway.url)
    first = make_replica((2, 5), ("kitchen", "hall"), Role.BOTH)
    second = make_replica((2, 5), ("attic", "cellar"), Role.BOTH)
    fog = SharingFog(tmp_path, ("kitchen", "hall", "attic", "cellar"))
    await fog.start()
    try:
        await fog.serve(manifest, [first])
        model_bytes = sum(info.num_bytes for info in manifest.tensors.values())
        # All nodes of a replica together read the model once.
        assert gateway.num_bytes == model_bytes
        alone = await fog.answer(generation("alone"))
        await fog._until(lambda: num_offers(fog) == 2, "both announce what they have")
        await fog.serve(manifest, [first, second])
        assert gateway.num_bytes == model_bytes
        given = {
            device: {each.source: each.num_bytes for each in fog.loaded[device].sources}
            for device in ("attic", "cellar")
        }
        assert set(given["attic"]) == {"neighbour kitchen"}
        assert set(given["cellar"]) == {"neighbour hall"}
        assert sum(sum(each.values()) for each in given.values()) == model_bytes
        await fog.route(manifest, [second])
        assert await fog.answer(generation("again")) == alone
    finally:
        await fog.stop()
        for server in fog.servers.values():
            server.stop()


def num_offers(fog: MemoryFog) -> int:
    """Return how many devices announce tensors."""
    payloads = [p for topic, p in fog.broker.retained.items() if DEVICE_TENSORS.match(topic)]
    return sum(bool(decode_control(payload, TensorOffer).tensors) for payload in payloads)


def generation(request_id: str) -> Generation:
    return Generation(
        request_id=request_id, prompt_ids=PROMPT, max_tokens=8, sampling=Sampling(ignore_eos=True)
    )

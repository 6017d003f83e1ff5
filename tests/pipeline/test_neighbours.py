"""Whole services: a second node takes its layers from the first, and the gateway rests."""

from collections.abc import Iterator, Sequence
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
from tests.support.checkpoints import FAMILIES, write_checkpoint
from tests.support.pipeline import make_replica
from tests.support.range_server import RangeServer, serve_ranges
from tests.support.real_fog import MemoryFog
from tests.support.sharing import manifest_elsewhere
from tests.support.stages import build_stages, generate, load_weights

PROMPT = tuple(range(3, 60))


class SharingFog(MemoryFog):
    """Nodes with caches of their own that hand weights on."""

    def __init__(self, folder: Path, devices: Sequence[str]) -> None:
        super().__init__(folder, devices)
        self._loading: list[Loader] = []
        self._servers: list[TensorServer] = []

    def _loader(self, device: str) -> Loader:
        cache = TensorCache(self.folder / device)
        server = TensorServer("127.0.0.1", 0)
        shelf = Shelf(f"http://127.0.0.1:{server.port}", cache)
        server.start(shelf)
        self._servers.append(server)
        # In a thread of its own, so that its node hears of others meanwhile.
        loader = Loader(supply=Supply(cache, Neighbours(device)), shelf=shelf)
        loader.start()
        self._loading.append(loader)
        return loader

    async def stop(self) -> None:
        """Stop everything."""
        await super().stop()
        for loader in self._loading:
            loader.stop()
        for server in self._servers:
            server.stop()

    def given(self, device: str) -> dict[str, int]:
        """Return how many bytes a device has read from whom."""
        return {each.source: each.num_bytes for each in self.loaded[device].sources}

    async def hands_on(self, num_devices: int, *, tensors: bool) -> None:
        """Wait until so many devices announce that they hand something on, or what they have."""

        def offers() -> int:
            found = [p for topic, p in self.broker.retained.items() if DEVICE_TENSORS.match(topic)]
            known = [decode_control(payload, TensorOffer) for payload in found if payload]
            return sum(bool(offer.tensors) or not tensors for offer in known)

        await self._until(lambda: offers() == num_devices, f"{num_devices} devices hand on")


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
        await fog.hands_on(2, tensors=True)
        await fog.serve(manifest, [first, second])
        assert gateway.num_bytes == model_bytes
        given = {device: fog.given(device) for device in ("attic", "cellar")}
        assert set(given["attic"]) == {"neighbour kitchen"}
        assert set(given["cellar"]) == {"neighbour hall"}
        assert sum(sum(each.values()) for each in given.values()) == model_bytes
        await fog.route(manifest, [second])
        assert await fog.answer(generation("again")) == alone
    finally:
        await fog.stop()


@pytest.mark.parametrize("cuts", [(2, 5), (1, 3, 5)], ids=["two", "three"])
async def test_a_head_that_is_tied_comes_from_the_device_with_the_embedding(
    tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    devices = ("kitchen", "hall", "attic")[: len(cuts)]
    # Half of this model is its embedding.
    folder = write_checkpoint(tmp_path / "model", "llama3", vocab_size=1500)
    with serve_ranges(folder) as gateway:
        manifest = manifest_elsewhere(folder, gateway.url)
        fog = SharingFog(tmp_path, devices)
        await fog.start()
        try:
            await fog.hands_on(len(devices), tensors=False)
            await fog.serve(manifest, [make_replica(cuts, devices, Role.BOTH)])
            tokens = await fog.answer(generation("q"))
        finally:
            await fog.stop()
    embedding = manifest.tensors["model.embed_tokens.weight"].num_bytes
    assert fog.given(devices[-1])["neighbour kitchen"] == embedding
    assert gateway.num_bytes == sum(info.num_bytes for info in manifest.tensors.values())
    whole = build_stages(load_weights({**FAMILIES["llama3"], "vocab_size": 1500}))
    assert tokens == generate(whole, PROMPT, 8)


def generation(request_id: str) -> Generation:
    return Generation(
        request_id=request_id, prompt_ids=PROMPT, max_tokens=8, sampling=Sampling(ignore_eos=True)
    )

"""Tensors come into the cache before they are asked for, some at a time."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from broker.control import ModelManifest
from nodes.checkpoint import MissingTensorError, TensorSource
from nodes.fetch_ahead import FetchAhead
from nodes.read_ahead import ReadAhead
from nodes.sources import MANNERS, Kind
from tests.support.checkpoints import write_checkpoint
from tests.support.range_server import Answer, RangeServer, serve_ranges
from tests.support.sharing import everything, manifest_elsewhere, supply_of

PATIENCE_SECONDS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


class Gate:
    """Holds answers back until it is opened, and lets a test wait for a number of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_open = False
        self.asked = 0

    def __call__(self, number: int) -> Answer:
        with self._changed:
            self.asked += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._is_open, PATIENCE_SECONDS)
        return Answer()

    def wait_for(self, asked: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.asked >= asked, PATIENCE_SECONDS)

    def open(self) -> None:
        with self._changed:
            self._is_open = True
            self._changed.notify_all()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def gateway(folder: Path, gate: Gate) -> Iterator[RangeServer]:
    with serve_ranges(folder, gate) as server:
        yield server
        gate.open()


@pytest.fixture
def manifest(folder: Path, gateway: RangeServer) -> ModelManifest:
    return manifest_elsewhere(folder, gateway.url)


def test_all_tensors_come_several_at_once_and_each_once(
    manifest: ModelManifest, gateway: RangeServer, gate: Gate, tmp_path: Path
) -> None:
    source = TensorSource(manifest, supply_of({}, tmp_path))
    with ReadAhead(source, list(manifest.tensors)) as ahead:
        gate.wait_for(MANNERS[Kind.GATEWAY].places)
        gate.open()
        for name, info in manifest.tensors.items():
            assert tuple(ahead.load_tensor(name).shape) == info.shape
    assert len(gateway.ranges) == len(manifest.tensors)
    assert gateway.most_busy == MANNERS[Kind.GATEWAY].places


def test_no_more_comes_ahead_than_there_is_room_for(
    manifest: ModelManifest, gate: Gate, gateway: RangeServer, tmp_path: Path
) -> None:
    names = [name for name in manifest.tensors if "up_proj" in name]
    size = manifest.tensors[names[0]].num_bytes
    source = TensorSource(manifest, supply_of({}, tmp_path))
    ahead = FetchAhead(source, names, ahead_bytes=2 * size)
    gate.wait_for(2)
    gate.open()
    ahead.take(names[0])
    ahead.take(names[1])
    gate.wait_for(4)
    assert gateway.most_busy <= 2
    ahead.stop()


def test_one_tensor_may_be_larger_than_the_room(
    manifest: ModelManifest, gate: Gate, tmp_path: Path
) -> None:
    gate.open()
    source = TensorSource(manifest, supply_of({}, tmp_path))
    names = list(manifest.tensors)[:3]
    ahead = FetchAhead(source, names, ahead_bytes=1)
    for name in names:
        ahead.take(name)
        source.load_tensor(name)
    assert gate.asked == 3


def test_what_cannot_be_had_is_complained_of_when_it_is_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    with serve_ranges(folder, lambda number: Answer(status=404)) as server:
        manifest = manifest_elsewhere(folder, server.url)
        source = TensorSource(manifest, supply_of({}, tmp_path))
        name = "model.norm.weight"
        with (
            ReadAhead(source, [name]) as ahead,
            pytest.raises(MissingTensorError, match="does not have the file"),
        ):
            ahead.load_tensor(name)


def test_a_bad_neighbour_costs_one_range_also_when_several_are_fetched_at_once(
    folder: Path, tmp_path: Path
) -> None:
    described = manifest_elsewhere(folder)
    (tmp_path / "loose" / "tensors").mkdir(parents=True)
    for info in described.tensors.values():
        (tmp_path / "loose" / "tensors" / info.checksum).write_bytes(bytes(info.num_bytes))
    with serve_ranges(tmp_path / "loose") as bad, serve_ranges(folder) as gateway:
        manifest = manifest_elsewhere(folder, gateway.url)
        supply = supply_of({"bad": everything(manifest, bad.url)}, tmp_path / "cache")
        source = TensorSource(manifest, supply)
        with ReadAhead(source, list(manifest.tensors)) as ahead:
            for name in manifest.tensors:
                ahead.load_tensor(name)
    assert len(bad.ranges) == 1
    assert len(gateway.ranges) == len(manifest.tensors)


def test_an_order_that_is_given_up_leaves_what_has_arrived(
    manifest: ModelManifest, gateway: RangeServer, gate: Gate, tmp_path: Path
) -> None:
    names = [name for name in manifest.tensors if "up_proj" in name]
    with ReadAhead(TensorSource(manifest, supply_of({}, tmp_path)), names):
        gate.wait_for(len(names[:4]))
    gate.open()
    for thread in threading.enumerate():
        if thread.name.startswith("fetch-"):
            thread.join(PATIENCE_SECONDS)
    asked = len(gateway.ranges)
    again = TensorSource(manifest, supply_of({}, tmp_path))
    loaded = {name: again.load_tensor(name) for name in names}
    assert all(isinstance(tensor, torch.Tensor) for tensor in loaded.values())
    # Bytes that came before the end of the first order did not come again.
    by_source = {each.source.split()[0]: each.num_bytes for each in again.log.sources}
    assert by_source["cache"] > 0
    assert sum(by_source.values()) == sum(manifest.tensors[name].num_bytes for name in names)
    assert len(gateway.ranges) >= asked

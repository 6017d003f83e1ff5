"""The next tensor is read while the one before it is in work."""

import threading
from pathlib import Path

import pytest
import torch

from broker.control import ModelManifest
from nodes.checkpoint import MissingTensorError, TensorSource
from nodes.read_ahead import ReadAhead
from nodes.stored import Stored
from tests.support.checkpoints import manifest_of, write_checkpoint
from tests.support.stored import floats_of


class NotedSource(TensorSource):
    """Notes what was read, and lets a test wait for it."""

    def __init__(self, manifest: ModelManifest) -> None:
        super().__init__(manifest)
        self.read: list[str] = []
        self.changed = threading.Condition()

    def load_tensor(self, name: str) -> Stored:
        tensor = super().load_tensor(name)
        with self.changed:
            self.read.append(name)
            self.changed.notify()
        return tensor

    def wait_for(self, *names: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.read == list(names), 20), self.read


@pytest.fixture
def source(tmp_path: Path) -> NotedSource:
    return NotedSource(manifest_of(write_checkpoint(tmp_path / "model")))


NORM, NEXT_NORM, LAST = (f"model.layers.{layer}.input_layernorm.weight" for layer in (0, 1, 2))


def test_what_follows_is_read_before_it_is_asked_for(source: NotedSource) -> None:
    with ReadAhead(source, [NORM, NEXT_NORM, LAST]) as ahead:
        first = ahead.load_tensor(NORM)
        source.wait_for(NORM, NEXT_NORM)
        second = ahead.load_tensor(NEXT_NORM)
        source.wait_for(NORM, NEXT_NORM, LAST)
    plain = TensorSource(source._manifest)
    assert torch.equal(floats_of(first), floats_of(plain.load_tensor(NORM)))
    assert torch.equal(floats_of(second), floats_of(plain.load_tensor(NEXT_NORM)))


def test_another_order_reads_every_tensor_once(source: NotedSource) -> None:
    with ReadAhead(source, [NORM, NEXT_NORM, LAST]) as ahead:
        for name in (NEXT_NORM, NORM, LAST):
            ahead.load_tensor(name)
    assert sorted(source.read) == [NORM, NEXT_NORM, LAST]


def test_a_tensor_that_is_missing_is_complained_of_when_it_is_asked_for(
    source: NotedSource,
) -> None:
    with ReadAhead(source, [NORM, "nowhere", LAST]) as ahead:
        ahead.load_tensor(NORM)
        with pytest.raises(MissingTensorError, match="nowhere"):
            ahead.load_tensor("nowhere")
        ahead.load_tensor(LAST)

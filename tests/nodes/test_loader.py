"""Layers come into memory once, and go when nobody needs them."""

import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from broker.architecture import stage_tensor_names
from broker.control import ModelManifest
from broker.plan import LayerRange, ReadFrom
from broker.registry import parse_config
from nodes.checkpoint import TensorSource
from nodes.loader import Loader
from nodes.orders import (
    LoadEvent,
    LoadFailed,
    LoadFinished,
    LoadOrder,
    LoadProgress,
    StageBuilt,
    StageSpec,
)
from nodes.shelf import Shelf
from nodes.stored import Stored
from nodes.supply import Supply
from nodes.tensor_cache import TensorCache
from tests.support.checkpoints import manifest_of, write_checkpoint
from tests.support.range_server import Answer, serve_ranges
from tests.support.sharing import manifest_elsewhere
from tests.support.stages import generate


@pytest.fixture
def manifest(tmp_path: Path) -> ModelManifest:
    return manifest_of(write_checkpoint(tmp_path / "model"))


def spec(manifest: ModelManifest, start: int, end: int, replica: str = "r-1") -> StageSpec:
    return StageSpec(
        replica=replica,
        stage=0,
        revision=manifest.revision,
        weights=manifest.weights,
        kv_format=manifest.kv_format,
        kv_transfer=manifest.kv_transfer,
        chunk_tokens=32,
        layers=LayerRange(start, end),
        embedding=start == 0,
        head=end == 5,
    )


def order(
    manifest: ModelManifest, *wanted: StageSpec, keep: tuple[StageSpec, ...] = (), version: int = 1
) -> LoadOrder:
    return LoadOrder(version, {manifest.revision: manifest}, wanted, wanted, keep)


def drain(loader: Loader) -> list[LoadEvent]:
    events = []
    while not loader.events.empty():
        events.append(loader.events.get())
    return events


def finished(events: list[LoadEvent]) -> LoadFinished:
    (last,) = (event for event in events if isinstance(event, LoadFinished))
    return last


def names(manifest: ModelManifest, *ranges: tuple[int, int]) -> set[str]:
    config = parse_config(manifest.config)
    return {
        name
        for start, end in ranges
        for name in stage_tensor_names(config, LayerRange(start, end), start == 0, end == 5)
    }


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of tensors in the order in which they were read."""
    asked: list[str] = []
    load = TensorSource.load_tensor

    def record(self: TensorSource, name: str) -> Stored:
        asked.append(name)
        return load(self, name)

    monkeypatch.setattr(TensorSource, "load_tensor", record)
    return asked


def test_a_stage_reads_its_own_tensors_and_no_others(
    manifest: ModelManifest, read: list[str]
) -> None:
    loader = Loader()
    loader.process(order(manifest, spec(manifest, 1, 3)))
    events = drain(loader)
    assert set(read) == names(manifest, (1, 3))
    assert set(finished(events).tensors) == names(manifest, (1, 3))
    assert finished(events).num_bytes == sum(
        manifest.tensors[name].num_bytes for name in names(manifest, (1, 3))
    )


def test_progress_grows_to_the_bytes_of_the_stage(manifest: ModelManifest) -> None:
    loader = Loader()
    loader.process(order(manifest, spec(manifest, 0, 2)))
    progress = [event for event in drain(loader) if isinstance(event, LoadProgress)]
    total = sum(manifest.tensors[name].num_bytes for name in names(manifest, (0, 2)))
    loaded = [event.loaded_bytes for event in progress]
    assert {event.total_bytes for event in progress} == {total}
    assert loaded == sorted(loaded)
    assert (loaded[0], loaded[-1]) == (0, total)


def test_a_coming_plan_shares_the_layers_of_the_running_one(
    manifest: ModelManifest, read: list[str]
) -> None:
    loader = Loader()
    loader.process(order(manifest, spec(manifest, 0, 3)))
    read.clear()
    now, coming = spec(manifest, 0, 3), spec(manifest, 0, 4, "r-2")
    loader.process(LoadOrder(2, {manifest.revision: manifest}, (now, coming), (coming,), (now,)))
    built = [event.spec for event in drain(loader) if isinstance(event, StageBuilt)]
    assert built == [spec(manifest, 0, 3), coming]
    assert set(read) == names(manifest, (3, 4))


def test_layers_that_nobody_needs_are_freed(manifest: ModelManifest) -> None:
    loader = Loader()
    loader.process(order(manifest, spec(manifest, 0, 5)))
    loader.process(order(manifest, spec(manifest, 2, 3)))
    drain(loader)
    loader.process(order(manifest, spec(manifest, 2, 3)))
    assert set(finished(drain(loader)).tensors) == names(manifest, (2, 3))


def test_layers_of_a_stage_that_still_serves_stay(manifest: ModelManifest) -> None:
    loader = Loader()
    old, new = spec(manifest, 0, 2), spec(manifest, 3, 5, "r-2")
    loader.process(order(manifest, old))
    drain(loader)
    loader.process(order(manifest, new, keep=(old,)))
    assert set(finished(drain(loader)).tensors) == names(manifest, (0, 2), (3, 5))
    loader.process(order(manifest, new))
    assert set(finished(drain(loader)).tensors) == names(manifest, (3, 5))


def test_an_old_model_goes_when_a_new_one_is_wanted(
    manifest: ModelManifest, tmp_path: Path
) -> None:
    newer = manifest_of(write_checkpoint(tmp_path / "newer", seed=1))
    loader = Loader()
    loader.process(order(manifest, spec(manifest, 0, 5)))
    drain(loader)
    loader.process(order(newer, spec(newer, 0, 1)))
    last = finished(drain(loader))
    assert set(last.tensors) == names(newer, (0, 1))


def test_nothing_wanted_leaves_nothing_in_memory(manifest: ModelManifest) -> None:
    loader = Loader()
    loader.process(order(manifest, spec(manifest, 0, 5)))
    drain(loader)
    loader.process(order(manifest))
    assert finished(drain(loader)) == LoadFinished(1, (), 0)


def test_the_stages_that_are_built_compute(manifest: ModelManifest) -> None:
    def tokens(*cuts: int) -> list[int]:
        edges = [0, *cuts, 5]
        specs = [spec(manifest, a, b) for a, b in pairwise(edges)]
        loader = Loader()
        loader.process(order(manifest, *specs))
        stages = [e.executor for e in drain(loader) if isinstance(e, StageBuilt)]
        for stage in stages:
            stage.kv.limit_tokens = 256
        return generate(stages, [5, 6, 7, 8], 12)

    assert tokens(2, 3) == tokens()


def test_a_missing_tensor_is_named(manifest: ModelManifest) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    tensors = {key: info for key, info in manifest.tensors.items() if key != name}
    loader = Loader()
    loader.process(order(_with(manifest, tensors=tensors), spec(manifest, 1, 3), version=7))
    (failed,) = (event for event in drain(loader) if isinstance(event, LoadFailed))
    assert failed.version == 7
    assert name in failed.error


def test_a_damaged_tensor_is_named_and_what_came_before_it_is_not_read_again(
    manifest: ModelManifest, read: list[str]
) -> None:
    name = "model.layers.2.self_attn.q_proj.weight"
    good = manifest.tensors[name]
    info = type(good)(
        file=good.file,
        offset=good.offset,
        num_bytes=good.num_bytes,
        dtype=good.dtype,
        shape=good.shape,
        checksum="0" * 64,
    )
    damaged = _with(manifest, tensors={**manifest.tensors, name: info})
    loader = Loader()
    loader.process(order(damaged, spec(manifest, 1, 3)))
    (failed,) = (event for event in drain(loader) if isinstance(event, LoadFailed))
    assert name in failed.error
    read.clear()
    loader.process(order(manifest, spec(manifest, 1, 3)))
    assert set(read) == names(manifest, (2, 3))
    assert isinstance(drain(loader)[-1], LoadFinished)


def test_where_bytes_came_from_is_told_with_progress_and_in_the_end(
    manifest: ModelManifest, tmp_path: Path
) -> None:
    with serve_ranges(tmp_path / "model") as server:
        elsewhere = manifest_elsewhere(tmp_path / "model", server.url)
        loader = Loader(tmp_path / "cache")
        loader.process(order(elsewhere, spec(manifest, 1, 3)))
    events = drain(loader)
    num_bytes = sum(manifest.tensors[name].num_bytes for name in names(manifest, (1, 3)))
    gateway = f"gateway {server.url.removeprefix('http://')}"
    assert finished(events).sources == (ReadFrom(source=gateway, num_bytes=num_bytes),)
    progress = [event for event in events if isinstance(event, LoadProgress)]
    assert all(
        sum(each.num_bytes for each in event.sources) <= event.loaded_bytes for event in progress
    )
    assert progress[-1].loaded_bytes == progress[-1].total_bytes == num_bytes
    assert server.num_bytes == num_bytes


def test_a_load_that_failed_tells_who_was_asked(manifest: ModelManifest, tmp_path: Path) -> None:
    with serve_ranges(tmp_path / "model", lambda number: Answer(status=403)) as server:
        elsewhere = manifest_elsewhere(tmp_path / "model", server.url)
        loader = Loader(tmp_path / "cache")
        loader.process(order(elsewhere, spec(manifest, 1, 2)))
    (failed,) = (event for event in drain(loader) if isinstance(event, LoadFailed))
    (source,) = failed.sources
    assert source.problems >= 1
    assert "status 403" in str(source.last_problem)


def test_what_a_node_has_loaded_it_offers(manifest: ModelManifest, tmp_path: Path) -> None:
    supply = Supply(TensorCache(tmp_path / "cache"))
    loader = Loader(supply=supply, shelf=Shelf("http://here", supply.cache))
    with serve_ranges(tmp_path / "model") as server:
        elsewhere = manifest_elsewhere(tmp_path / "model", server.url)
        loader.process(order(elsewhere, spec(manifest, 1, 3)))
    offer = loader.exchange.offer(session=7)
    assert offer is not None
    (ranges,) = offer.tensors.values()
    by_position = sorted(manifest.tensors)
    offered = {by_position[p] for start, end in ranges for p in range(start, end)}
    assert offered == names(manifest, (1, 3))


def test_an_unknown_weight_format_fails_with_its_name(manifest: ModelManifest) -> None:
    loader = Loader()
    loader.process(order(manifest, replace(spec(manifest, 0, 1), weights="int3")))
    (failed,) = (event for event in drain(loader) if isinstance(event, LoadFailed))
    assert "int3" in failed.error


def test_a_newer_order_overtakes_one_that_is_loading(
    manifest: ModelManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader()
    reached, go_on = threading.Event(), threading.Event()
    load = TensorSource.load_tensor

    def hold_up(self: TensorSource, name: str) -> Stored:
        reached.set()
        assert go_on.wait(20)
        return load(self, name)

    monkeypatch.setattr(TensorSource, "load_tensor", hold_up)
    loader.start()
    loader.want(order(manifest, spec(manifest, 0, 5), version=1))
    assert reached.wait(20)
    loader.want(order(manifest, spec(manifest, 4, 5), version=2))
    go_on.set()
    events: list[LoadEvent] = []
    while not any(isinstance(event, LoadFinished) for event in events):
        events.append(loader.events.get(timeout=20))
    loader.stop()
    assert finished(events).version == 2
    assert set(finished(events).tensors) == names(manifest, (4, 5))


def _with(manifest: ModelManifest, **changes: object) -> ModelManifest:
    fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    return ModelManifest(**{**fields, **changes})


def test_stages_of_two_models_are_loaded_by_one_order_and_freed_apart(
    manifest: ModelManifest, tmp_path: Path
) -> None:
    other = manifest_of(write_checkpoint(tmp_path / "other", seed=7), "other")
    loader = Loader()
    first, second = spec(manifest, 0, 2), spec(other, 1, 4, "r-2")
    manifests = {each.revision: each for each in (manifest, other)}
    loader.process(LoadOrder(1, manifests, (first, second), (first, second), ()))
    events = drain(loader)
    assert [event.spec for event in events if isinstance(event, StageBuilt)] == [first, second]
    total = sum(
        model.tensors[name].num_bytes
        for model, layers in ((manifest, (0, 2)), (other, (1, 4)))
        for name in names(model, layers)
    )
    progress = [event for event in events if isinstance(event, LoadProgress)]
    assert {event.total_bytes for event in progress} == {total}
    assert progress[-1].loaded_bytes == total

    loader.process(LoadOrder(2, {other.revision: other}, (second,), (), (second,)))
    assert set(finished(drain(loader)).tensors) == names(other, (1, 4))

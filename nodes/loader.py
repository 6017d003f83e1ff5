"""Loads layers in the background and builds the executors of stages from them.

Each layer is in memory once, shared by the stages of the running and of a coming plan. The
newest order wins: an older one is given up between two tensors. Knows nothing of messages;
what happens is put on a queue that the node's loop reads.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from broker.architecture import (
    ModelConfig,
    embedding_tensors,
    head_tensors,
    is_integer,
    parse_config,
    stage_tensor_names,
    stored_names,
)
from broker.control import ModelManifest
from nodes.checkpoint import TensorSource
from nodes.exchange import Exchange
from nodes.executor import StageExecutor
from nodes.grammars import Beside, GrammarMaker, in_thread
from nodes.hardware import give_memory_back
from nodes.kernels import Int8Kernel, choose_int8_kernel
from nodes.orders import (
    LoadEvent,
    LoadFailed,
    LoadFinished,
    LoadOrder,
    LoadProgress,
    StageBuilt,
    StageSpec,
    WeightsKey,
)
from nodes.read_ahead import ReadAhead
from nodes.read_log import ReadLog
from nodes.shelf import Shelf
from nodes.stored import Stored
from nodes.supply import Supply
from nodes.tensor_cache import TensorCache
from nodes.weights import LayerWeights

logger = logging.getLogger(__name__)


class _SupersededError(Exception):
    """A newer order waits, or the node stops."""


class Loader:
    """A thread that brings memory to what the newest order says.

    Args:
        cache_folder: Where measurements and fetched weights are kept; None: nowhere.
        threads: Threads that torch may use for conversions.
        supply: Where tensors come from; None: the manifest's places alone.
        shelf: Told what has come; None: nothing is handed on.
        beside: Runs what makes grammars.

    Attributes:
        exchange: For the node's loop, which hears from others and announces the shelf.
    """

    def __init__(
        self,
        cache_folder: Path | None = None,
        threads: int = 1,
        *,
        supply: Supply | None = None,
        shelf: Shelf | None = None,
        beside: Beside = in_thread,
    ) -> None:
        self.events: queue.SimpleQueue[LoadEvent] = queue.SimpleQueue()
        self._cache_folder = cache_folder
        if supply is None:
            folder = None if cache_folder is None else TensorCache(cache_folder / "weights")
            supply = Supply(folder)
        self._supply = supply
        self._beside = beside
        self.exchange = Exchange(supply.neighbours, shelf)
        self._log = ReadLog()
        self._threads = threads
        self._changed = threading.Condition()
        self._order: LoadOrder | None = None
        self._is_stopping = False
        self._models: dict[WeightsKey, _Model] = {}
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def start(self) -> None:
        """Begin to take orders."""
        self._thread.start()

    def want(self, order: LoadOrder) -> None:
        """Replace the order that waits or runs."""
        with self._changed:
            self._order = order
            self._changed.notify()

    def grammars(self, manifest: Callable[[], ModelManifest]) -> GrammarMaker:
        """Return what makes the grammars of a model, from its newest manifest."""
        return GrammarMaker(
            lambda: TensorSource(manifest(), self._supply).load_tokenizer(), self._beside
        )

    def stop(self) -> None:
        """Give up what runs, at the next tensor."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._order is not None or self._is_stopping)
                if self._is_stopping:
                    return
                order, self._order = self._order, None
            assert order is not None, "woken by an order"
            self.process(order)

    def process(self, order: LoadOrder) -> None:
        """Carry out an order in the calling thread; what fails becomes an event."""
        try:
            self.carry_out(order)
        except _SupersededError:
            logger.debug("assignment %d was overtaken while it loaded", order.version)
        except Exception as error:  # whatever it is, the planner must hear of it
            logger.error("loading failed: %s", error)
            self.events.put(LoadFailed(order.version, _describe(error), self._log.sources))

    def carry_out(self, order: LoadOrder) -> None:
        """Free what is not needed, load what is missing, build the stages, in this order.

        Raises:
            TensorError, WrongShapeError, UnsupportedModelError: As they say; what was loaded
                until then stays.
        """
        self._log = ReadLog()
        self._free({*order.wanted, *order.keep})
        if order.wanted:
            if self._supply.cache is not None:
                self._supply.cache.forget_unread()
            # One model after the other; most of the time there is one.
            by_model: dict[WeightsKey, list[StageSpec]] = {}
            for spec in order.wanted:
                by_model.setdefault(spec.weights_key, []).append(spec)
            jobs = [self._job(order, key, specs) for key, specs in by_model.items()]
            progress = self._progress(order, jobs)
            for job in jobs:
                self._carry_out(job, order, progress)
        give_memory_back()
        for manifest in order.manifests.values():
            self._stock(manifest)
        weights = [model.weights for model in self._models.values()]
        names = dict.fromkeys(name for held in weights for name in held.tensor_names)
        num_bytes = sum(held.num_bytes for held in weights)
        self.events.put(LoadFinished(order.version, tuple(names), num_bytes, self._log.sources))

    def _job(self, order: LoadOrder, key: WeightsKey, specs: list[StageSpec]) -> _Job:
        manifest = order.manifests[key[0]]
        if key not in self._models:
            kernel = None
            if is_integer(key[1]):
                kernel = choose_int8_kernel(self._cache_folder, self._threads)
            self._models[key] = _Model(parse_config(manifest.config), key[1], kernel)
        model = self._models[key]
        names = dict.fromkeys(name for spec in specs for name in model.tensor_names(spec))
        here = set(model.weights.tensor_names)
        return _Job(manifest, model, specs, [*names], [name for name in names if name not in here])

    def _progress(self, order: LoadOrder, jobs: Iterable[_Job]) -> Callable[[int], None]:
        """Return what tells how many bytes of all models are here, called with those that came."""
        jobs = list(jobs)
        total = sum(job.num_bytes(job.names) for job in jobs)
        arrived = total - sum(job.num_bytes(job.missing) for job in jobs)
        self.events.put(LoadProgress(order.version, arrived, total))

        def progress(num_bytes: int) -> None:
            nonlocal arrived
            arrived += num_bytes
            loaded = min(arrived, total)
            self.events.put(LoadProgress(order.version, loaded, total, self._log.sources))

        return progress

    def _carry_out(self, job: _Job, order: LoadOrder, progress: Callable[[int], None]) -> None:
        model = job.model
        model.source.before_each = self._check_superseded
        source = TensorSource(job.manifest, self._supply, progress, self._log, job.awaited)
        # With the manifest's newest URLs.
        with ReadAhead(source, job.missing) as reading:
            model.source.replace(reading)
            if model.tied_names and any(spec.embedding for spec in job.specs):
                # At once: who holds the head waits for it.
                model.weights.add_embedding()
                self._stock(job.manifest)
            for spec in job.specs:
                model.load(spec)
                if spec in order.build:
                    self.events.put(StageBuilt(spec, model.executor(spec)))

    def _stock(self, manifest: ModelManifest) -> None:
        if self.exchange.shelf is not None:
            self.exchange.shelf.stock(manifest)

    def _check_superseded(self) -> None:
        with self._changed:
            if self._order is not None or self._is_stopping:
                raise _SupersededError

    def _free(self, specs: Iterable[StageSpec]) -> None:
        by_model: dict[WeightsKey, list[StageSpec]] = {}
        for spec in specs:
            by_model.setdefault(spec.weights_key, []).append(spec)
        for key in list(self._models):
            if key in by_model:
                self._models[key].keep_only(by_model[key])
            else:
                del self._models[key]


class _CurrentSource:
    """The newest source of one model: its URLs expire, its weights stay."""

    def __init__(self) -> None:
        self._source: ReadAhead | None = None
        self.before_each = _nothing

    def replace(self, source: ReadAhead) -> None:
        self._source = source

    def load_tensor(self, name: str) -> Stored:
        assert self._source is not None, "an order brings its manifest"
        self.before_each()
        return self._source.load_tensor(name)


class _Model:
    """The weights of one model in one format."""

    def __init__(self, config: ModelConfig, weights: str, kernel: Int8Kernel | None) -> None:
        self.source = _CurrentSource()
        self.weights = LayerWeights(config, self.source, weights, kernel=kernel)
        self._config = config

    @property
    def tied_names(self) -> list[str]:
        """Tensors that both ends of the model need."""
        of_head = stored_names([head_tensors(self._config)])
        return [name for name in stored_names([embedding_tensors(self._config)]) if name in of_head]

    def tensor_names(self, spec: StageSpec) -> list[str]:
        return stage_tensor_names(self._config, spec.layers, spec.embedding, spec.head)

    def load(self, spec: StageSpec) -> None:
        if spec.embedding:
            self.weights.add_embedding()
        for layer in range(spec.layers.start, spec.layers.end):
            self.weights.add(layer)
            # Or what packing used adds up, in pieces too small for what comes next.
            give_memory_back()
        if spec.head:
            self.weights.add_head()

    def keep_only(self, specs: Iterable[StageSpec]) -> None:
        specs = list(specs)
        for layer in self.weights.layers:
            if not any(layer in spec.layers for spec in specs):
                self.weights.drop(layer)
        if not any(spec.embedding for spec in specs):
            self.weights.drop_embedding()
        if not any(spec.head for spec in specs):
            self.weights.drop_head()

    def executor(self, spec: StageSpec) -> StageExecutor:
        return StageExecutor(
            self._config,
            spec.layers,
            self.weights,
            embedding=spec.embedding,
            head=spec.head,
            kv_tokens=0,
            chunk_tokens=spec.chunk_tokens,
            kv_format=spec.kv_format,
            kv_transfer=spec.kv_transfer,
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """What an order wants of one model.

    Attributes:
        names: Tensors of ``specs``.
        missing: Those that are not in memory.
    """

    manifest: ModelManifest
    model: _Model
    specs: list[StageSpec]
    names: list[str]
    missing: list[str]

    @property
    def awaited(self) -> dict[str, str]:
        """What other devices read as their embedding, and is this one's head as well."""
        devices = [spec.embedding_device for spec in self.specs if spec.embedding_device]
        if not devices or any(spec.embedding for spec in self.specs):
            return {}
        return dict.fromkeys(self.model.tied_names, devices[0])

    def num_bytes(self, names: Iterable[str]) -> int:
        """Return what tensors take in the checkpoint; those that it lacks count nothing."""
        tensors = self.manifest.tensors
        return sum(tensors[name].num_bytes for name in names if name in tensors)


def _describe(error: Exception) -> str:
    # Our own errors name tensor, place and remedy; others at least their kind.
    is_ours = type(error).__module__.startswith(("nodes.", "broker."))
    return str(error) if is_ours else f"{type(error).__name__}: {error}"


def _nothing() -> None:
    """Nothing to check."""

"""Which stages a device holds: what the planner assigned, what is loaded, what still drains.

Decides; the loader loads and the device core serves. Runs on the node's loop alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from broker.control import ModelManifest
from broker.plan import (
    Assignment,
    Loaded,
    LoadState,
    ModelStages,
    ReadFrom,
    StageAssignment,
)
from nodes.device import DeviceCore, StageKey
from nodes.executor import StageExecutor
from nodes.grammars import GrammarMaker
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

logger = logging.getLogger(__name__)

DRAIN_SECONDS: Final = 60.0
"""A stage that is no longer assigned is dropped when idle, or after this."""

HANDOVER_SECONDS: Final = 3.0
"""Where new layers wait for the memory of such a stage, what runs there goes on elsewhere after
this: a long answer must not hold up the fog (decision 0032)."""

RETRY_SECONDS: Final = 10.0
"""A load that failed is tried again after this: the gateway may have been away."""


class Holdings:
    """The stages of one device.

    Args:
        core: Serves the stages.
        want: Gives an order to the loader.
        grammars: Returns what makes the grammars of a model, given its newest manifest.

    Attributes:
        kv_tokens: KV positions of each assigned stage.
    """

    def __init__(
        self,
        core: DeviceCore,
        want: Callable[[LoadOrder], None],
        session: Callable[[], int],
        grammars: Callable[[Callable[[], ModelManifest]], GrammarMaker],
    ) -> None:
        self._core = core
        self._want = want
        self._session = session
        self._make_grammars = grammars
        self._grammars: dict[str, GrammarMaker] = {}
        self._manifests: dict[str, ModelManifest] = {}
        self._assignment: Assignment | None = None
        self._wanted: dict[StageKey, StageSpec] = {}
        self._kv_tokens: dict[StageKey, int] = {}
        self._held: dict[StageKey, StageSpec] = {}
        self._built: dict[StageKey, tuple[StageSpec, StageExecutor]] = {}
        self._draining: dict[StageKey, float] = {}
        self._state = LoadState.MEASURING
        self._error: str | None = None
        self._tensors: tuple[str, ...] = ()
        self._loaded_bytes = 0
        self._total_bytes = 0
        self._sources: tuple[ReadFrom, ...] = ()
        self._retry_at: float | None = None

    # --- what arrives ----------------------------------------------------------------------

    def learn_manifest(self, manifest: ModelManifest, now: float) -> None:
        """A model is served, or its URLs were renewed."""
        known = self._manifests.get(manifest.revision)
        self._manifests[manifest.revision] = manifest
        parts = self._assignment.parts if self._assignment is not None else []
        is_awaited = any(part.revision == manifest.revision for part in parts)
        if is_awaited and (known is None or self._state is LoadState.FAILED):
            self._order(now)

    def assign(self, assignment: Assignment, now: float) -> None:
        """Take over an assignment unless a newer one is known."""
        known = self._assignment
        if known is not None and (assignment.version < known.version or assignment == known):
            return
        self._assignment = assignment
        self._sources = ()
        self._wanted, self._kv_tokens = {}, {}
        for part in assignment.parts:
            for stage in part.stages:
                spec = _spec(part, stage)
                self._wanted[spec.key] = spec
                # In both lists while it is being moved: room for the larger.
                room = max(stage.kv_tokens, self._kv_tokens.get(spec.key, 0))
                self._kv_tokens[spec.key] = room
        self._built = {k: b for k, b in self._built.items() if self._wanted.get(k) == b[0]}
        for key in self._held:
            if key in self._wanted:
                self._draining.pop(key, None)
            else:
                self._draining.setdefault(key, now)
        self._limit_kv()
        self._order(now)

    def plan_changed(self) -> None:
        """A plan was learned: stages that waited for their replica's definition can serve."""
        for key, (spec, executor) in list(self._built.items()):
            replica = self._core.replica(spec.replica)
            if replica is None:
                continue
            del self._built[key]
            planned = dict(enumerate(replica.stages)).get(spec.stage)
            if planned is None or (planned.device, planned.layers) != (
                self._core.device,
                spec.layers,
            ):
                logger.error("the plan gives stage %d of %s to others", spec.stage, replica.id)
                continue
            self._core.drop(key)
            grammars = self._grammars_of(spec.revision) if spec.head else None
            self._core.hold(replica, spec.stage, executor, grammars)
            self._held[key] = spec
        self._limit_kv()

    def take(self, event: LoadEvent, now: float) -> None:
        """Take in what the loader did."""
        match event:
            case StageBuilt(spec, executor):
                if self._wanted.get(spec.key) == spec and self._held.get(spec.key) != spec:
                    self._built[spec.key] = spec, executor
                    self.plan_changed()
            case _ if self._assignment is None or event.version != self._assignment.version:
                pass
            case LoadProgress(_, loaded_bytes, total_bytes, sources):
                self._loaded_bytes, self._total_bytes = loaded_bytes, total_bytes
                self._sources = sources or self._sources
            case LoadFinished(_, tensors, num_bytes, sources):
                self._state, self._error = LoadState.LOADED, None
                # Of an order that had nothing to read, that of the one before stays.
                self._sources = sources or self._sources
                self._tensors = tensors
                self._loaded_bytes = self._total_bytes = num_bytes
            case LoadFailed(_, error, sources):
                self._state, self._error = LoadState.FAILED, error
                self._sources = sources or self._sources
                self._retry_at = now + RETRY_SECONDS

    def measuring(self) -> None:
        """The device measures itself for a model."""
        if self._assignment is None:
            self._state, self._error = LoadState.MEASURING, None

    def measured(self, error: str | None) -> None:
        """The measurement ended; with an error the device cannot serve that model."""
        if self._assignment is None:
            self._state = LoadState.LOADED if error is None else LoadState.FAILED
            self._error = error

    # --- time ------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Drop stages that have drained; try failed loads again."""
        for key, since in list(self._draining.items()):
            stage = self._core.stages.get(key)
            if stage is None or stage.is_idle or now - since >= DRAIN_SECONDS:
                self._core.drop(key)
                self._held.pop(key, None)
                del self._draining[key]
                if not self._draining:
                    self._order(now)  # frees the layers that nobody needs now
            elif self._waits_for_memory and now - since >= HANDOVER_SECONDS:
                stage.dismiss("its layers make room for others; it goes on from the queue", now)
        if self._retry_at is not None and now >= self._retry_at:
            self._order(now)

    # --- what is known ---------------------------------------------------------------------

    def weights_of(self, key: StageKey) -> WeightsKey | None:
        """Return the revision and weight format of a stage that serves."""
        spec = self._held.get(key)
        return None if spec is None else spec.weights_key

    @property
    def loaded(self) -> Loaded:
        """The retained message for the planner."""
        assignment = self._assignment
        ready = [k for k, s in self._wanted.items() if self._has(s)]
        return Loaded(
            session=self._session(),
            version=0 if assignment is None else assignment.version,
            state=self._state,
            revision="" if assignment is None else assignment.revision,
            stages=[f"{replica}/{stage}" for replica, stage in ready],
            tensors=list(self._tensors),
            loaded_bytes=self._loaded_bytes,
            total_bytes=self._total_bytes,
            error=self._error,
            sources=list(self._sources),
        )

    # --- private ---------------------------------------------------------------------------

    @property
    def _waits_for_memory(self) -> bool:
        return self._assignment is not None and self._assignment.frees_first

    def _has(self, spec: StageSpec) -> bool:
        built = self._built.get(spec.key)
        return self._held.get(spec.key) == spec or (built is not None and built[0] == spec)

    def _order(self, now: float) -> None:
        assignment = self._assignment
        if assignment is None:
            return
        self._retry_at = None
        wanted = tuple(self._wanted.values())
        missing = tuple(spec for spec in wanted if not self._has(spec))
        if missing or self._state is not LoadState.LOADED:
            self._state, self._error = LoadState.LOADING, None
        if self._waits_for_memory and self._draining:
            return  # `tick` comes back when the last of them has drained
        manifests = {
            part.revision: self._manifests[part.revision]
            for part in assignment.parts
            if part.revision in self._manifests
        }
        if any(spec.revision not in manifests for spec in missing):
            logger.info("assignment %d waits for its model", assignment.version)
            return
        self._want(
            LoadOrder(
                version=assignment.version,
                manifests=manifests,
                # Of a model that nobody publishes any more nothing can be read; what serves stays.
                wanted=tuple(spec for spec in wanted if spec.revision in manifests),
                build=missing,
                keep=(*self._held.values(), *(spec for spec, _ in self._built.values())),
            )
        )

    def _grammars_of(self, revision: str) -> GrammarMaker:
        """Return what makes a model's grammars, one for all its stages; others are forgotten."""
        served = {revision, *(spec.revision for spec in self._held.values())}
        self._grammars = {name: made for name, made in self._grammars.items() if name in served}
        if revision not in self._grammars:
            self._grammars[revision] = self._make_grammars(lambda: self._manifests[revision])
        return self._grammars[revision]

    def _limit_kv(self) -> None:
        """Room for KV may change while a replica lives; requests that are open stay."""
        for key, kv_tokens in self._kv_tokens.items():
            stage = self._core.stages.get(key)
            if stage is not None:
                stage.executor.kv.limit_tokens = kv_tokens


def _spec(part: ModelStages, stage: StageAssignment) -> StageSpec:
    return StageSpec(
        replica=stage.replica,
        stage=stage.stage,
        revision=part.revision,
        weights=part.weights,
        kv_format=part.kv_format,
        kv_transfer=part.kv_transfer,
        chunk_tokens=part.chunk_tokens,
        layers=stage.layers,
        embedding=stage.embedding,
        head=stage.head,
        embedding_device=stage.embedding_device,
    )

"""What a device is to have in memory, and what becomes of it while it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.control import ModelManifest
from broker.plan import LayerRange, ReadFrom
from nodes.executor import StageExecutor

WeightsKey = tuple[str, str]
"""Revision of the model, and weight format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """All that makes one stage's executor; equal specs may share an executor."""

    replica: str
    stage: int
    revision: str
    weights: str
    kv_format: str
    kv_transfer: str
    chunk_tokens: int
    layers: LayerRange
    embedding: bool
    head: bool
    # Follows from the replica, but a planner of the last version does not say it.
    embedding_device: str | None = field(default=None, compare=False)

    @property
    def key(self) -> tuple[str, int]:
        """Replica and stage, as messages name it."""
        return self.replica, self.stage

    @property
    def weights_key(self) -> WeightsKey:
        """Which weights it is made of."""
        return self.revision, self.weights


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What should be in memory.

    Attributes:
        version: Of the assignment; comes back in every event.
        manifests: Of the models of all ``wanted`` stages, by revision.
        wanted: Stages whose layers are to be loaded.
        build: Those of ``wanted`` that have no executor yet.
        keep: Stages that still serve; their layers stay.
    """

    version: int
    manifests: Mapping[str, ModelManifest]
    wanted: tuple[StageSpec, ...]
    build: tuple[StageSpec, ...]
    keep: tuple[StageSpec, ...]


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Bytes of the checkpoint that are here, of those that are wanted, and where they are from."""

    version: int
    loaded_bytes: int
    total_bytes: int
    sources: tuple[ReadFrom, ...] = ()


@dataclass(frozen=True, slots=True)
class StageBuilt:
    """A stage can run; its device must still learn of its replica."""

    spec: StageSpec
    executor: StageExecutor


@dataclass(frozen=True, slots=True)
class LoadFinished:
    """Everything wanted is in memory, and nothing else but what is kept."""

    version: int
    tensors: tuple[str, ...]
    num_bytes: int
    sources: tuple[ReadFrom, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A tensor could not be had or used; ``error`` says which, and why."""

    version: int
    error: str
    sources: tuple[ReadFrom, ...] = ()


LoadEvent = LoadProgress | StageBuilt | LoadFinished | LoadFailed

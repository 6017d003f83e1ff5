"""Which model something is for: its revision, and the formats in which nodes hold it."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class OfModel(Protocol):
    """A manifest, a plan, an assignment or a planner's model."""

    @property
    def revision(self) -> str:
        """Hash over config and tensors."""

    @property
    def weights(self) -> str:
        """Format of the weights in memory."""

    @property
    def kv_format(self) -> str:
        """Format of the KV cache."""

    @property
    def kv_transfer(self) -> str:
        """How KV travels."""


class ModelIdentity(NamedTuple):
    """Where two differ in anything, no stage of one goes on with a request of the other."""

    revision: str
    weights: str
    kv_format: str
    kv_transfer: str


def identity(target: OfModel) -> ModelIdentity:
    """Return which model ``target`` is for."""
    return ModelIdentity(target.revision, target.weights, target.kv_format, target.kv_transfer)

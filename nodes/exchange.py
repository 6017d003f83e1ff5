"""The weights that a device takes from others and hands on to them."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.control import ModelManifest, TensorOffer
from nodes.neighbours import Neighbours
from nodes.shelf import Shelf


@dataclass(frozen=True)
class Exchange:
    """Both sides, as the node's loop sees them.

    Attributes:
        neighbours: What others hand on.
        shelf: What this device hands on; None: nothing.
    """

    neighbours: Neighbours = field(default_factory=Neighbours)
    shelf: Shelf | None = None

    def learn_manifest(self, manifest: ModelManifest) -> None:
        """A model is served, or its key was renewed."""
        if self.shelf is not None:
            self.shelf.learn_manifest(manifest)

    def offer(self, session: int) -> TensorOffer | None:
        """Return what is to be announced; None: nothing at all."""
        return None if self.shelf is None else self.shelf.offer(session)

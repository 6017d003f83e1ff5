"""Models as a gateway prepares them and a node loads them, in one process."""

from pathlib import Path

from broker.architecture import parse_config
from broker.control import ModelManifest
from gateway.manifest import prepare_manifest
from nodes.checkpoint import TensorSource
from nodes.weights import LayerWeights
from tests.support.stages import fill_weights


def prepared_manifest(path: Path, weights: str = "float32") -> ModelManifest:
    """Return the manifest of a folder or file that lacks nothing."""
    prepared = prepare_manifest(
        path,
        name="tiny",
        weights=weights,
        kv_format="float32",
        cache=path.parent / "checksums.json",
    )
    assert prepared.problems == ()
    return prepared.manifest


def load_prepared(path: Path, weights: str = "float32") -> LayerWeights:
    """Return all its weights, in a format."""
    manifest = prepared_manifest(path, weights)
    config = parse_config(manifest.config)
    return fill_weights(LayerWeights(config, TensorSource(manifest), weights))

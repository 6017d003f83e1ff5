"""Whether transformers, as it is installed here, can run a model of no family of ours by layers.

Answered from the text of its source, without importing it: nodes are asked to run the model
only when there is hope, and whoever started the fog hears at once when there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from broker.config_values import UnsupportedModelError
from broker.model_config import Shape
from broker.other_models import describe

# What the source of a model has whose blocks take rotated positions, and whose attention can
# be replaced.
_MARKS: Final = {
    "position_embeddings": "its blocks take no rotated positions",
    "ALL_ATTENTION_FUNCTIONS": "its attention cannot be replaced by ours",
}


def has_transformers() -> bool:
    """Whether it is installed."""
    return _folder() is not None


def described_for_transformers(
    config: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    """Return the config with a description of its tensors.

    Raises:
        UnsupportedModelError: The transformers installed here cannot run it by layers.
    """
    kind, folder = str(config.get("model_type")).replace("-", "_"), _folder()
    assert folder is not None, "the caller looked"
    source = folder / "models" / kind / f"modeling_{kind}.py"
    if not kind.isidentifier() or not source.is_file():
        raise UnsupportedModelError(
            f"it does not know the model type {kind!r}; install a newer one"
        )
    text = source.read_text("utf-8")
    for mark, why in _MARKS.items():
        if mark not in text:
            raise UnsupportedModelError(why)
    return describe(config, shapes)


def _folder() -> Path | None:
    package = find_spec("transformers")
    return None if package is None or package.origin is None else Path(package.origin).parent

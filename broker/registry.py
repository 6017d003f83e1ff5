"""Which family reads a checkpoint's ``config.json``; refuses what none of them computes.

Both layouts are understood: transformers 4 (``rope_theta``, ``rope_scaling``, ``torch_dtype`` at
the top level) and transformers 5 (``rope_parameters``, ``dtype``). A key that is absent has
its family's documented default; a key that would change the computation in a way that
nodes do not implement is refused by name. Every module of `broker.families` with a constant
``FAMILIES`` takes part.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

import broker.families
from broker.config_values import REMEDY, ConfigValues, UnsupportedModelError
from broker.families.family import NEUTRAL, Family
from broker.model_config import ModelConfig
from broker.other_models import DESCRIPTION, read_other


class UnknownArchitectureError(UnsupportedModelError):
    """No family here computes models of this architecture; the message names it."""


@cache
def families() -> Mapping[str, Family]:
    """Return all families by the architecture that they compute, in alphabetical order."""
    found = {}
    for module in pkgutil.iter_modules(broker.families.__path__, "broker.families."):
        for family in getattr(importlib.import_module(module.name), "FAMILIES", ()):
            found[family.architecture] = family
    return dict(sorted(found.items()))


def parse_config(config: Mapping[str, Any]) -> ModelConfig:
    """Read a ``config.json`` of either layout.

    Raises:
        UnknownArchitectureError: No family here computes it.
        UnsupportedModelError: A key changes the computation in an unsupported way, or a value
            is malformed; names the key and the remedy.
    """
    if DESCRIPTION in config:
        return read_other(config)
    family = _family(config)
    _refuse_unsupported(config, family)
    return family.read(ConfigValues({**family.defaults, **config}))


def _family(config: Mapping[str, Any]) -> Family:
    names = config.get("architectures")
    if not names:
        # Old and hand-written files have only the model type.
        model_type = config.get("model_type")
        for family in families().values():
            if family.name == model_type:
                return family
        names = [f"model_type {model_type!r}"]
    for name in names:
        if name in families():
            return families()[name]
    raise UnknownArchitectureError(
        f"architecture {', '.join(map(str, names))} is not supported; choose a checkpoint of "
        f"{', '.join(families())}, install e2llm[transformers] on gateway and nodes to run it with "
        "transformers, or add its family (docs/adding-a-model-family.md)"
    )


def _refuse_unsupported(config: Mapping[str, Any], family: Family) -> None:
    for key, allowed in {**NEUTRAL, **family.allowed}.items():
        value = config.get(key)
        if value is not None and key not in family.understood and value not in allowed:
            shown = "..." if isinstance(value, dict) else repr(value)
            raise UnsupportedModelError(
                f"config key {key}={shown} is not supported for {family.name} models; {REMEDY}"
            )
    for kind in config.get("layer_types") or []:
        if kind not in family.layer_types:
            raise UnsupportedModelError(
                f"config key layer_types contains {kind!r}, which is not supported for "
                f"{family.name} models; {REMEDY}"
            )

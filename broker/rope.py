"""Rotary position embeddings as a ``config.json`` describes them. No torch, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.config_values import REMEDY, ConfigValues, UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding.

    Attributes:
        kind: ``default``, ``linear`` (positions divided by ``factor``) or ``llama3``
            (frequencies below a wavelength divided by ``factor``, blended in between).
        theta: Base of the frequencies.
        original_max_position_embeddings: Context of pre-training; ``llama3`` only.
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0


def read_rope(values: ConfigValues, max_positions: int) -> Rope:
    """Read ``rope_theta`` and ``rope_scaling`` (transformers 4) or ``rope_parameters`` (5).

    Raises:
        UnsupportedModelError: A kind that is not known, or a malformed value.
    """
    # Same order as transformers 5: rope_scaling wins, and what it lacks stands at top level.
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    found: Mapping[str, Any] = {"rope_theta": values.get("rope_theta"), **(values.get(key) or {})}
    if any(isinstance(value, Mapping) for value in found.values()):
        raise UnsupportedModelError(f"config key {key} differs by layer type; {REMEDY}")
    if found.get("partial_rotary_factor") not in (None, 1.0):
        raise UnsupportedModelError(f"config key {key}.partial_rotary_factor; {REMEDY}")
    kind = found.get("rope_type") or found.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise UnsupportedModelError(
            f"config key {key}: rope type {kind!r} is not supported "
            f"(default, linear and llama3 are); {REMEDY}"
        )
    parameters = ConfigValues(found, f"{key}.")
    theta = parameters.number("rope_theta", 10000.0)
    if kind == "default":
        return Rope(theta=theta)
    factor = parameters.number("factor")
    if kind == "linear":
        return Rope(kind="linear", theta=theta, factor=factor)
    name = "original_max_position_embeddings"
    return Rope(
        kind="llama3",
        theta=theta,
        factor=factor,
        low_freq_factor=parameters.number("low_freq_factor"),
        high_freq_factor=parameters.number("high_freq_factor"),
        original_max_position_embeddings=values.whole_number(
            name, parameters.whole_number(name, max_positions)
        ),
    )

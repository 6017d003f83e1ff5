"""Rotary position embeddings as a ``config.json`` describes them. No torch, no I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from broker.config_values import REMEDY, ConfigValues, UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding.

    Attributes:
        kind: ``default``, ``linear`` (positions divided by ``factor``), ``llama3``
            (frequencies below a wavelength divided by ``factor``, blended in between),
            ``yarn`` (the same by the number of turns within the original context) or
            ``longrope`` (each frequency divided by its own of ``factors``).
        theta: Base of the frequencies.
        original_max_position_embeddings: Context of pre-training; not of ``default``, ``linear``.
        amplitude: Of cosines and sines.
        share: Of a head's dimensions that are rotated, the first ones.
        turns: Fewest and most turns within the original context between which ``yarn`` blends.
        is_whole: Whether ``yarn`` blends from one whole dimension to another.
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    amplitude: float = 1.0
    share: float = 1.0
    turns: tuple[float, float] = (1.0, 32.0)
    is_whole: bool = True
    factors: tuple[float, ...] = ()


_KINDS: Final = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
# What may stand at the top level, even beside the others.
_ABOVE: Final = ("rope_theta", "partial_rotary_factor")
# Names that early files of Phi-3 have for longrope.
_OLD_NAMES: Final = {"su": "longrope"}


def read_rope(values: ConfigValues, *, partial: bool = False) -> Rope:
    """Read ``rope_theta`` and ``rope_scaling`` (transformers 4) or ``rope_parameters`` (5).

    A share of rotated dimensions is refused unless ``partial``.

    Raises:
        UnsupportedModelError: A kind that is not known, or a malformed value.
    """
    # Same order as transformers 5: rope_scaling wins, and what it lacks stands at top level.
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    found: dict[str, Any] = {name: values.get(name) for name in _ABOVE}
    found |= {k: v for k, v in (values.get(key) or {}).items() if v is not None}
    if any(isinstance(value, Mapping) for value in found.values()):
        raise UnsupportedModelError(f"config key {key} differs by layer type; {REMEDY}")
    kind = found.get("rope_type") or found.get("type") or "default"
    kind = _OLD_NAMES.get(kind, kind)
    if kind not in _KINDS:
        raise UnsupportedModelError(
            f"config key {key}: rope type {kind!r} is not supported "
            f"({', '.join(_KINDS)} are); {REMEDY}"
        )
    parameters = ConfigValues(found, f"{key}.")
    share = parameters.number("partial_rotary_factor", 1.0)
    if share > 1 or (share != 1 and not partial):
        raise UnsupportedModelError(f"config key {key}.partial_rotary_factor={share}; {REMEDY}")
    rope = Rope(theta=parameters.number("rope_theta", 10000.0), share=share)
    if kind in ("default", "dynamic"):
        # Dynamic scaling begins beyond the context, and no request gets there.
        return rope
    if kind == "linear":
        return replace(rope, kind="linear", factor=parameters.number("factor"))
    name = "original_max_position_embeddings"
    max_positions = values.whole_number("max_position_embeddings")
    original = values.whole_number(name, parameters.whole_number(name, max_positions))
    rope = replace(rope, kind=kind, original_max_position_embeddings=original)
    if kind == "llama3":
        return replace(
            rope,
            factor=parameters.number("factor"),
            low_freq_factor=parameters.number("low_freq_factor"),
            high_freq_factor=parameters.number("high_freq_factor"),
        )
    return _yarn(rope, parameters) if kind == "yarn" else _longrope(rope, parameters, max_positions)


def _yarn(rope: Rope, parameters: ConfigValues) -> Rope:
    """Return the scaling of arXiv 2309.00071."""
    factor = parameters.number("factor")

    def growth(scale: float) -> float:
        return 1.0 + 0.1 * scale * math.log(factor) if factor > 1 else 1.0

    amplitude = growth(1.0)
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        amplitude = growth(parameters.number("mscale"))
        amplitude /= growth(parameters.number("mscale_all_dim"))
    truncate = parameters.get("truncate")
    return replace(
        rope,
        factor=factor,
        amplitude=parameters.number("attention_factor", amplitude),
        turns=(parameters.number("beta_slow", 1.0), parameters.number("beta_fast", 32.0)),
        is_whole=truncate is None or bool(truncate),
    )


def _longrope(rope: Rope, parameters: ConfigValues, max_positions: int) -> Rope:
    """Return the scaling of arXiv 2402.13753 within the original context.

    Beyond it other factors hold for all positions, also those that are in the KV cache, so
    a context that grows would have to be computed anew.
    """
    original = rope.original_max_position_embeddings
    factor = parameters.number("factor", max_positions / original)
    amplitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return replace(
        rope,
        amplitude=parameters.number("attention_factor", amplitude),
        factors=parameters.numbers("short_factor"),
    )

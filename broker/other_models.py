"""Models of no family here, which nodes compute with transformers: what planning needs to know.

Names and shapes of their tensors follow from no config. A gateway reads them in the files and
writes them into the config that it publishes, under a key of our own. No torch, no I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from broker.config_values import ConfigValues, UnsupportedModelError
from broker.model_config import LayerConfig, ModelConfig, OtherLayer, OtherModel, Shape

DESCRIPTION: Final = "e2llm_tensors"
"""The key of our own."""

_LAYER: Final = re.compile(r"((?:[A-Za-z_][\w-]*\.)+?)(\d+)\.(.+)")
_EMBEDDING: Final = re.compile(r"emb|\.wte\.")
# Not weights: what old checkpoints saved of tables that are computed.
_TABLES: Final = ("rotary_emb.inv_freq", "attention.bias", "masked_bias")
_REFUSED: Final = {
    "quantization_config": "choose a checkpoint that is not quantised",
    "is_encoder_decoder": "choose a model with a decoder alone",
}


class Description(msgspec.Struct, frozen=True):
    """Shapes of all tensors.

    Attributes:
        prefix: Of the names of a layer's tensors, before its number.
        kinds: Shapes by local name, of layers that have the same.
        layers: Each layer's place among ``kinds``.
        before: What stands before the layers, by whole name.
        after: What stands after them.
    """

    prefix: str
    kinds: tuple[dict[str, Shape], ...]
    layers: tuple[int, ...]
    before: dict[str, Shape]
    after: dict[str, Shape]


def describe(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the config with a description of its tensors.

    Args:
        config: ``config.json``.
        shapes: Of all tensors of floats in the checkpoint.

    Raises:
        UnsupportedModelError: They are not those of a decoder whose layers are numbered.
    """
    weights = {name: shape for name, shape in shapes.items() if not name.endswith(_TABLES)}
    matches = {name: found for name in weights if (found := _LAYER.fullmatch(name))}
    prefixes = [found[1] for found in matches.values()]
    if not prefixes:
        raise UnsupportedModelError("none of its tensors belongs to a numbered layer")
    prefix = max(dict.fromkeys(prefixes), key=prefixes.count)
    layers: dict[int, dict[str, Shape]] = {}
    for name, found in matches.items():
        if found[1] == prefix:
            layers.setdefault(int(found[2]), {})[found[3]] = weights[name]
    if sorted(layers) != list(range(len(layers))):
        raise UnsupportedModelError(f"layers are missing among {prefix}0 to {max(layers)}")
    kinds: list[dict[str, Shape]] = []
    for tensors in (layers[number] for number in sorted(layers)):
        if tensors not in kinds:
            kinds.append(tensors)
    outside = {name: shape for name, shape in weights.items() if not name.startswith(prefix)}
    base = prefix.rstrip(".").rpartition(".")[0]
    inside = [name for name in outside if name.startswith(f"{base}.")]
    before = {name: outside[name] for name in inside if _EMBEDDING.search(name)}
    after = {name: shape for name, shape in outside.items() if name not in before}
    if not before:
        raise UnsupportedModelError(f"none of {', '.join(outside)} is its embedding")
    if all(name in inside for name in after):
        # No head of its own: it is the embedding's matrix.
        after |= {name: shape for name, shape in before.items() if len(shape) == 2}
    description = Description(
        prefix=prefix,
        kinds=tuple(kinds),
        layers=tuple(kinds.index(layers[number]) for number in sorted(layers)),
        before=before,
        after=after,
    )
    return {**config, DESCRIPTION: msgspec.to_builtins(description)}


def read_other(config: Mapping[str, Any]) -> ModelConfig:
    """Read a config that `describe` made.

    Raises:
        UnsupportedModelError: A key is missing or malformed, or changes what layers are.
    """
    try:
        found = msgspec.convert(config[DESCRIPTION], Description)
    except msgspec.ValidationError as error:
        raise UnsupportedModelError(f"config key {DESCRIPTION}: {error}") from error
    for key, remedy in _REFUSED.items():
        if config.get(key):
            raise UnsupportedModelError(f"config key {key} is not supported; {remedy}")
    values = ConfigValues(config)
    raw = {key: value for key, value in config.items() if key != DESCRIPTION}
    num_heads, hidden_size = (
        values.whole_number("num_attention_heads"),
        values.whole_number("hidden_size"),
    )
    window = _window(values)
    types = values.get("layer_types") or ["sliding_attention"] * len(found.layers)
    if len(types) != len(found.layers):
        raise UnsupportedModelError(
            f"config key layer_types has {len(types)} entries for {len(found.layers)} layers"
        )
    layers = tuple(
        LayerConfig(
            rope=None,
            window=window if kind == "sliding_attention" else None,
            other=OtherLayer(number, place, tuple(found.kinds[place].items())),
        )
        for number, (place, kind) in enumerate(zip(found.layers, types, strict=True))
    )
    return ModelConfig(
        family=str(values.get("model_type")),
        hidden_size=hidden_size,
        intermediate_size=values.whole_number("intermediate_size", 4 * hidden_size),
        num_heads=num_heads,
        num_kv_heads=values.whole_number("num_key_value_heads", num_heads),
        head_dim=values.whole_number("head_dim", hidden_size // num_heads),
        vocab_size=values.whole_number("vocab_size"),
        rms_norm_eps=1e-5,
        layers=layers,
        tie_word_embeddings=any(name in found.after for name in found.before),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        max_position_embeddings=values.whole_number("max_position_embeddings"),
        eos_token_ids=values.whole_numbers("eos_token_id"),
        dtype=str(values.get("dtype") or values.get("torch_dtype") or "float32"),
        other=OtherModel(
            config=json.dumps(raw, sort_keys=True),
            prefix=found.prefix,
            before=tuple(found.before.items()),
            after=tuple(found.after.items()),
        ),
    )


def _window(values: ConfigValues) -> int | None:
    """Return how far layers of sliding attention see; nodes refuse layers that see otherwise."""
    if values.get("sliding_window") is None or values.get("use_sliding_window") is False:
        return None
    window = values.whole_number("sliding_window")
    return window if window < values.whole_number("max_position_embeddings") else None

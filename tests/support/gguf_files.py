"""Writes the same random checkpoint twice: as a GGUF file, and in safetensors with its floats.

What llama.cpp's converter does is written here once more, from its description: names, rows of
queries and keys in pairs, norms of Gemma plus one, all experts of a layer in one tensor.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import save_file

from broker.architecture import parse_config
from tests.support.checkpoints import (
    CHAT_TEMPLATE,
    FAMILIES,
    random_tensors,
    write_tokenizer,
)

Floats = npt.NDArray[np.float32]

_BLOCK_NAMES: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
_OUTER_NAMES: Final = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
ARCHITECTURES: Final = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "granite": "granite",
    "smollm3": "smollm3",
    "gpt_oss": "gpt-oss",
}
"""Names in llama.cpp by ``model_type``."""

_SIZES: Final = {"hidden_size": 64, "intermediate_size": 96}


def write_twins(
    folder: Path,
    family: str,
    kind: str = "Q8_0",
    *,
    vocabulary: Mapping[str, Any] | None = None,
    tensors_per_file: int = 0,
    **changes: Any,
) -> tuple[Path, Path]:
    """Write a family's checkpoint; return its GGUF file and the folder with the same floats.

    Args:
        folder: For both.
        family: A key of `FAMILIES`.
        kind: Of matrices whose rows are made of whole blocks; others are F16, vectors F32.
        vocabulary: Keys of the tokenizer; None: as `write_tokenizer`.
        tensors_per_file: At most; the first of several files is returned. 0: all in one.
        changes: Keys of ``config.json`` to set, or to leave out when None.
    """
    config = {**FAMILIES[family], **_SIZES, **changes}
    config = {key: value for key, value in config.items() if value is not None}
    twin = folder / "twin"
    twin.mkdir(parents=True)
    (twin / "config.json").write_text(json.dumps(config))
    write_tokenizer(twin)
    path = folder / f"{family}-{kind}.gguf"
    writer = GGUFWriter(
        path, ARCHITECTURES[config["model_type"]], split_max_tensors=tensors_per_file
    )
    add_config(writer, config)
    for key, value in (byte_vocabulary() if vocabulary is None else vocabulary).items():
        _add(writer, key, value)
    floats = _add_tensors(writer, config, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(floats, twin / "model.safetensors", {"format": "pt"})
    return min(folder.glob(f"{path.stem}*.gguf")), twin


def byte_vocabulary() -> dict[str, Any]:
    """Return the keys of the tokenizer that `write_tokenizer` writes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    symbols = [chr(byte if byte in shown else next(others)) for byte in range(256)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *symbols],
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * 256,
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def add_config(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    """Write what a ``config.json`` says, as far as llama.cpp writes it."""
    parsed = parse_config(config)
    values: dict[str, Any] = {
        "block_count": parsed.num_layers,
        "context_length": config["max_position_embeddings"],
        "embedding_length": parsed.hidden_size,
        "feed_forward_length": parsed.intermediate_size,
        "attention.head_count": parsed.num_heads,
        "attention.head_count_kv": parsed.num_kv_heads,
        "attention.key_length": parsed.head_dim,
        "attention.value_length": parsed.head_dim,
        "attention.layer_norm_rms_epsilon": parsed.rms_norm_eps,
        "attention.sliding_window": config.get("sliding_window"),
        "rope.freq_base": float(config["rope_theta"]),
        "attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
        "expert_count": config.get("num_experts", config.get("num_local_experts")),
        "expert_used_count": config.get("num_experts_per_tok"),
        "expert_feed_forward_length": config.get(
            "moe_intermediate_size", config["intermediate_size"]
        ),
        "embedding_scale": config.get("embedding_multiplier"),
        "residual_scale": config.get("residual_multiplier"),
        "attention.scale": config.get("attention_multiplier"),
        "logit_scale": config.get("logits_scaling"),
    }
    if "partial_rotary_factor" in config:
        values["rope.dimension_count"] = int(config["partial_rotary_factor"] * parsed.head_dim)
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind in ("linear", "yarn"):
        values["rope.scaling.type"] = kind
        values["rope.scaling.factor"] = scaling["factor"]
        original = scaling.get("original_max_position_embeddings")
        values["rope.scaling.original_context_length"] = original
    if kind == "longrope":
        (rope,) = {layer.rope for layer in parsed.layers}
        assert rope is not None
        values["rope.scaling.attn_factor"] = rope.amplitude
        original = config["original_max_position_embeddings"]
        values["rope.scaling.original_context_length"] = original
    for key, value in values.items():
        if value is not None:
            _add(writer, f"{writer.arch}.{key}", value)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value:
        writer.add_array(key, value)


def _add_tensors(
    writer: GGUFWriter, config: Mapping[str, Any], kind: str
) -> dict[str, torch.Tensor]:
    """Write all tensors; return the floats that they stand for, under their own names."""
    parsed = parse_config(config)
    is_gpt_oss = writer.arch == "gpt-oss"
    if is_gpt_oss:
        config = {**config, "quantization_config": {"quant_method": "gguf"}}
    scaling = config.get("rope_scaling") or {}
    for key, name in (("long_factor", "rope_factors_long"), ("short_factor", "rope_factors_short")):
        if key in scaling:
            writer.add_tensor(f"{name}.weight", np.array(scaling[key], np.float32))
    if (scaling.get("rope_type") or scaling.get("type")) == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(scaling, config, parsed.head_dim))
    # By the name in the file: what is written, and the names that it is made of.
    files: dict[str, dict[str, Floats]] = {}
    for name, tensor in random_tensors(config).items():
        whole = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        is_named_after = parsed.norms.after_attention is not None or is_gpt_oss
        files.setdefault(_file_name(whole, is_named_after), {})[name] = tensor.numpy()
    floats = {}
    for file_name, parts in files.items():
        values = list(parts.values())
        stacked = np.stack([_changed(v, n, writer.arch, parsed) for n, v in parts.items()])
        written = stacked if "_exps" in file_name else stacked[0]
        chosen = _kind_for(written, "F32" if file_name.endswith("bias") else kind)
        raw = _raw(written, chosen)
        writer.add_tensor(file_name, raw, raw_dtype=chosen)
        read = gguf.dequantize(raw, chosen).reshape(len(values), *values[0].shape)
        for name, part in zip(parts, read, strict=True):
            restored = _restored(part, name, writer.arch, parsed)
            floats[name] = torch.from_numpy(restored.astype(np.float32))
    return _packed(floats, parsed.num_layers) if is_gpt_oss else floats


def _packed(floats: dict[str, torch.Tensor], num_layers: int) -> dict[str, torch.Tensor]:
    """Return the experts of gpt-oss as transformers has them: transposed, gate and up in turns."""
    count = sum(name.startswith("model.layers.0.mlp.experts.") for name in floats) // 6
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}.mlp.experts"

        def all_of(name: str, prefix: str = prefix) -> torch.Tensor:
            return torch.stack([floats.pop(f"{prefix}.{e}.{name}") for e in range(count)])

        for end, suffix in (("weight", ""), ("bias", "_bias")):
            gate, up, down = (all_of(f"{part}_proj.{end}") for part in ("gate", "up", "down"))
            both = torch.stack((gate, up), 2).flatten(1, 2)
            floats[f"{prefix}.gate_up_proj{suffix}"] = both.transpose(1, -1).contiguous()
            floats[f"{prefix}.down_proj{suffix}"] = down.transpose(1, -1).contiguous()
    return floats


def _llama3_factors(scaling: Mapping[str, Any], config: Mapping[str, Any], size: int) -> Floats:
    """Return what each frequency is divided by, as llama.cpp's converter computes it."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    wavelengths = 2 * np.pi * config["rope_theta"] ** (np.arange(0, size, 2) / size)
    smooth = (original / wavelengths - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    middle = np.where(wavelengths > original / low, factor, blended)
    return np.where(wavelengths < original / high, 1.0, middle).astype(np.float32)


def _file_name(name: str, is_named_after_attention: bool) -> str:
    module, suffix = name.rsplit(".", 1)
    if suffix == "sinks":
        return f"blk.{module.split('.')[2]}.attn_sinks.weight"
    if module in _OUTER_NAMES:
        return f"{_OUTER_NAMES[module]}.{suffix}"
    _, _, layer, local = module.split(".", 3)
    is_after = local == "post_attention_layernorm"
    after = "post_attention_norm" if is_named_after_attention else "ffn_norm"
    return f"blk.{layer}.{after if is_after else _BLOCK_NAMES[local]}.{suffix}"


def _heads(name: str, arch: str, config: Any) -> int:
    if arch not in ("llama", "granite", "smollm3"):
        return 0
    is_query, is_key = ".q_proj." in name, ".k_proj." in name
    return int(config.num_heads if is_query else config.num_kv_heads if is_key else 0)


def _changed(values: Floats, name: str, arch: str, config: Any) -> Floats:
    if heads := _heads(name, arch, config):
        halves = values.reshape(heads, 2, -1, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    is_norm = arch.startswith("gemma") and name.endswith("norm.weight")
    return values + np.float32(1) if is_norm else values


def _restored(values: Floats, name: str, arch: str, config: Any) -> Floats:
    if heads := _heads(name, arch, config):
        pairs = values.reshape(heads, -1, 2, *values.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))
    is_norm = arch.startswith("gemma") and name.endswith("norm.weight")
    return values - np.float32(1) if is_norm else values


def _kind_for(values: Floats, kind: str) -> GGMLQuantizationType:
    if values.ndim == 1:
        return GGMLQuantizationType.F32
    wanted = GGMLQuantizationType[kind]
    block_elements, _ = gguf.GGML_QUANT_SIZES[wanted]
    return GGMLQuantizationType.F16 if values.shape[-1] % block_elements else wanted


def _raw(values: Floats, kind: GGMLQuantizationType) -> npt.NDArray[Any]:
    """Return values in a kind; what the package cannot write is made up, block by block."""
    if kind not in (GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K):
        return gguf.quantize(values, kind)
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(values.size)
    blocks = random.integers(0, 256, (values.size // block_elements, block_bytes), np.uint8)
    scale = np.float16(0.1 / 64 / np.sqrt(values.shape[-1])).tobytes()
    at = slice(0, 2) if kind is GGMLQuantizationType.Q4_K else slice(block_bytes - 2, None)
    blocks[:, at] = np.frombuffer(scale, np.uint8)
    if kind is GGMLQuantizationType.Q4_K:
        blocks[:, 2:4] = np.frombuffer(scale, np.uint8)
    return blocks.reshape(*values.shape[:-1], -1)

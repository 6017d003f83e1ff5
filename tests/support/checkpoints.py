"""Writes small random checkpoints of each family, as `save_pretrained` would, without transformers.

Shapes are odd on purpose: head sizes apart from hidden / heads, a vocabulary that is no
multiple of anything, grouped key heads. The tokenizer is byte-level: token ids are the
byte's value plus 3, after <unk>, <s> and </s>.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from broker.architecture import parse_config, stage_tensor_names
from broker.control import ModelManifest, TensorInfo
from broker.plan import LayerRange

UNKNOWN_ID, BOS_ID, EOS_ID, BYTE_OFFSET = 0, 1, 2, 3
NUM_TOKENS: Final = BYTE_OFFSET + 256

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_SHAPE: Final[Mapping[str, Any]] = {
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    # Larger than the tokenizer's, as with real models whose matrices are padded.
    "vocab_size": 263,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "torch_dtype": "float32",
    # Some families' default lies outside so small a vocabulary.
    "pad_token_id": UNKNOWN_ID,
}

# In the layout of transformers 4, in which most published checkpoints are.
FAMILIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama": {
        **_SHAPE,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "llama3": {
        **_SHAPE,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama_linear": {
        **_SHAPE,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": 6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "tie_word_embeddings": False,
    },
    "mistral": {
        **_SHAPE,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "head_dim": 12,
        "rope_theta": 1000000.0,
        "sliding_window": 40,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        **_SHAPE,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": True,
        "sliding_window": 40,
        "max_window_layers": 2,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        **_SHAPE,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 10,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "tie_word_embeddings": False,
    },
    # A dense block among the experts, more of them than a row of the batch can visit.
    "qwen3_moe": {
        **_SHAPE,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 10,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "moe_intermediate_size": 28,
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
        "tie_word_embeddings": False,
    },
    "qwen3_moe_sparse": {
        **_SHAPE,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "rope_theta": 10000.0,
        "moe_intermediate_size": 24,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "tie_word_embeddings": True,
    },
    "llama_yarn": {
        **_SHAPE,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": 20,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "tie_word_embeddings": False,
    },
    "llama_dynamic": {
        **_SHAPE,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "tie_word_embeddings": False,
    },
    "olmo2": {
        **_SHAPE,
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "rope_theta": 500000.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
    },
    "smollm3": {
        **_SHAPE,
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "rope_theta": 5000000.0,
        "no_rope_layers": [1, 0, 1, 1, 0],
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
    "granite": {
        **_SHAPE,
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "rope_theta": 10000.0,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
        "tie_word_embeddings": True,
    },
    "phi3": {
        **_SHAPE,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "sliding_window": 40,
        "tie_word_embeddings": False,
    },
    "phi4": {
        **_SHAPE,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 256,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.2, 1.5],
            "long_factor": [1.0, 4.0, 16.0],
        },
        "tie_word_embeddings": True,
    },
    "gemma2": {
        **_SHAPE,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "head_dim": 10,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 10000.0,
        "query_pre_attn_scalar": 20,
        "sliding_window": 40,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        **_SHAPE,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": 10,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "query_pre_attn_scalar": 16,
        "sliding_window": 11,
        "sliding_window_pattern": 3,
        "tie_word_embeddings": True,
    },
    "gpt_oss": {
        **_SHAPE,
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "head_dim": 10,
        "intermediate_size": 24,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "rope_theta": 150000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 16,
        },
        "attention_bias": True,
        "sliding_window": 12,
        "tie_word_embeddings": False,
    },
}


def newer_layout(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same config as transformers 5 writes it."""
    moved = ("rope_theta", "rope_scaling", "rope_local_base_freq", "torch_dtype")
    new = {k: v for k, v in config.items() if k not in moved}
    rope = dict(config.get("rope_scaling") or {})
    rope["rope_type"] = rope.pop("type", rope.get("rope_type", "default"))
    rope["rope_theta"] = config["rope_theta"]
    new["rope_parameters"] = rope
    if "rope_local_base_freq" in config:
        local = {"rope_type": "default", "rope_theta": config["rope_local_base_freq"]}
        new["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    new["dtype"] = config["torch_dtype"]
    return new


def random_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return float32 tensors of every name that the architecture has.

    Scaled so that hidden states neither vanish nor explode and logits are far apart:
    greedy tokens then differ from step to step and a near tie is rare.
    """
    parsed = parse_config(config)
    layers = LayerRange(0, parsed.num_layers)
    shapes = _shapes(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in stage_tensor_names(parsed, layers, embedding=True, head=True):
        shape = shapes[name]
        values = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif name.endswith("bias"):
            values = 0.3 * values
        elif len(shape) == 1:
            pass
        elif name == "model.embed_tokens.weight":
            values = values * (0.5 if parsed.tie_word_embeddings else 1.0)
        else:
            values = values * (1.6 / math.sqrt(shape[1]))
        tensors[name] = values
    return tensors


def write_checkpoint(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    num_files: int = 2,
    **changes: Any,
) -> Path:
    """Write config, weights and tokenizer of a family into ``folder`` and return it.

    Args:
        family: A key of `FAMILIES`.
        seed: Of the random weights.
        dtype: In which the tensors are stored.
        num_files: Safetensors files over which they are spread, with an index if several.
        changes: Keys of config.json to set, or to leave out when None.
    """
    config = {**FAMILIES[family], **changes}
    config = {key: value for key, value in config.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"eos_token_id": EOS_ID, "bos_token_id": BOS_ID})
    tensors = {name: t.to(dtype) for name, t in random_tensors(config, seed).items()}
    write_tensors(folder, tensors, num_files)
    write_tokenizer(folder)
    return folder


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], num_files: int = 1) -> None:
    """Write ``tensors`` as one safetensors file, or as several with an index."""
    names = list(tensors)
    if num_files == 1:
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
        return
    weight_map = {}
    for number in range(num_files):
        file = f"model-{number + 1:05}-of-{num_files:05}.safetensors"
        part = names[number::num_files]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer without merges: one token per byte of UTF-8."""
    vocabulary = {"<unk>": UNKNOWN_ID, "<s>": BOS_ID, "</s>": EOS_ID}
    vocabulary |= {symbol: BYTE_OFFSET + byte for byte, symbol in enumerate(_byte_symbols())}
    special = [
        {
            "id": token_id,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for content, token_id in list(vocabulary.items())[:BYTE_OFFSET]
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>"},
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    settings = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def manifest_of(folder: Path, /, name: str = "tiny", **changes: Any) -> ModelManifest:
    """Describe the checkpoint in ``folder`` as a gateway would."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(_tensors_in(path))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for tensor in tensors.values():
        digest.update(tensor.checksum.encode())
    values: dict[str, Any] = {
        "name": name,
        "revision": digest.hexdigest()[:16],
        "config": config,
        "tensors": tensors,
        "folder": str(folder),
        "tokenizer": _whole(folder / "tokenizer.json"),
        **changes,
    }
    return ModelManifest(**values)


def _whole(path: Path) -> TensorInfo | None:
    if not path.is_file():
        return None
    data = path.read_bytes()
    checksum = hashlib.sha256(data).hexdigest()
    return TensorInfo(
        file=path.name, offset=0, num_bytes=len(data), dtype="U8", shape=(len(data),),
        checksum=checksum,
    )  # fmt: skip


def _tensors_in(path: Path) -> dict[str, TensorInfo]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: TensorInfo(
            file=path.name,
            offset=start + entry["data_offsets"][0],
            num_bytes=entry["data_offsets"][1] - entry["data_offsets"][0],
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            checksum=hashlib.sha256(
                data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
            ).hexdigest(),
        )
        for name, entry in header.items()
    }


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    from broker.architecture import block_tensors, embedding_tensors, head_tensors

    parsed = parse_config(config)
    groups = [embedding_tensors(parsed), head_tensors(parsed)]
    groups += [block_tensors(parsed, layer) for layer in range(parsed.num_layers)]
    return {spec.name: spec.shape for group in groups for spec in group.values()}


def _byte_symbols() -> list[str]:
    """Return the printable character that stands for each byte (the table of GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), "utf-8")

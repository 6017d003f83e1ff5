"""A model folder without torch: a byte-level tokenizer, a chat template, small weights.

Token ids are bytes plus `BYTE`, after three special tokens; a few words are tokens of their
own, so that stop strings and characters can be cut anywhere by a script of ids.
"""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from broker.architecture import block_tensors, embedding_tensors, head_tensors, parse_config

BOS, EOS, TURN, BYTE = 0, 1, 2, 3
WORDS: Final = (" the", " sum", " is", "<|", "stop", "|>")
VOCABULARY: Final = BYTE + 256 + len(WORDS)
CONTEXT: Final = 64

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('a system message must come first') }}{% endif %}"
    "<turn>{{ message['role'] }}\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)

TOOLS_TEMPLATE: Final = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for message in messages %}"
    "{{ message.role }}:{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
"""Of a model that calls functions, in Qwen's format."""

CONFIG: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "torch_dtype": "float32",
}


def byte_alphabet() -> list[str]:
    """Return the character by which a byte-level tokenizer writes each byte, by byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    names = {byte: chr(byte) for byte in shown}
    names.update({byte: chr(256 + index) for index, byte in enumerate(hidden)})
    return [names[byte] for byte in range(256)]


def build_tokenizer() -> Tokenizer:
    alphabet = byte_alphabet()
    words = ["".join(alphabet[byte] for byte in word.encode()) for word in WORDS]
    tokens = ["<s>", "</s>", "<turn>", *alphabet, *words]
    # Without merges a text is encoded byte by byte; the words are there for decoding.
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, []))
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>", "<turn>")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def ids_of(text: str) -> list[int]:
    """Return a text as one token per byte."""
    return [BYTE + byte for byte in text.encode()]


def word_id(word: str) -> int:
    """Return the id of one of `WORDS`."""
    return BYTE + 256 + WORDS.index(word)


def tensors_of(config: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return random tensors with the names and shapes that ``config`` needs."""
    parsed = parse_config(config)
    specs = [
        *embedding_tensors(parsed).values(),
        *head_tensors(parsed).values(),
        *(s for n in range(parsed.num_layers) for s in block_tensors(parsed, n).values()),
    ]
    random = np.random.default_rng(7)
    return {s.name: random.standard_normal(s.shape).astype(np.float32) for s in specs}


def write_model_folder(
    folder: Path,
    *,
    template: str | None = CHAT_TEMPLATE,
    generation_config: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint in one safetensors file; return its folder."""
    config = CONFIG if config is None else config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors_of(config), folder / "model.safetensors", metadata={"format": "pt"})
    build_tokenizer().save(str(folder / "tokenizer.json"))
    tokenizer_config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    if template is not None:
        tokenizer_config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    return folder

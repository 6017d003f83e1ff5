"""Tokenizer, chat template and defaults of a model in a GGUF file."""

from __future__ import annotations

from typing import Any, Final

from gateway.gguf.file import GgufFile, Metadata
from gateway.gguf.tokenizer import control_tokens, token_text, tokenizer_of
from gateway.model import ModelText
from gateway.template import ChatTemplate
from gateway.text import Tokenizer

# Names of special tokens in templates, and in files.
_ROLES: Final = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}
# Tokens that end an answer whether a file says so or not; llama.cpp knows them by name too.
_ENDS: Final = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
)
# What gpt-oss ends an answer with; with ``<|end|>`` it ends only one of its messages.
_CHANNEL_ENDS: Final = ("<|return|>", "<|call|>")
_MESSAGE_END: Final = "<|end|>"
_SAMPLING: Final = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


def read_text(file: GgufFile) -> ModelText:
    """Return what stands between text and ids.

    Raises:
        TokenizerError, ChatTemplateError: The file describes none that can be used.
    """
    metadata = file.metadata
    source = metadata.get("tokenizer.chat_template")
    texts = {name: token_text(metadata, role) for name, role in _ROLES.items()}
    special = {name: text for name, text in texts.items() if text is not None}
    return ModelText(
        tokenizer=Tokenizer(tokenizer_of(metadata)),
        template=ChatTemplate(source, special) if isinstance(source, str) else None,
        generation=_generation(metadata),
    )


def _generation(metadata: Metadata) -> dict[str, Any]:
    """Return what a ``generation_config.json`` would say."""
    roles = ("eos", "eot", "eom")
    ids = [metadata.get(f"tokenizer.ggml.{role}_token_id") for role in roles]
    control = control_tokens(metadata)
    ids += [control.get(token) for token in (*_ENDS, *_CHANNEL_ENDS)]
    if all(token in control for token in _CHANNEL_ENDS):
        ids = [token_id for token_id in ids if token_id != control.get(_MESSAGE_END)]
    sampling = {name: metadata.get(f"general.sampling.{key}") for name, key in _SAMPLING.items()}
    known = {name: value for name, value in sampling.items() if value is not None}
    return {**known, "eos_token_id": [i for i in dict.fromkeys(ids) if i is not None]}

"""A model of each family that calls functions, whose answers are chosen at random by a grammar."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from gateway.requests import Generation
from nodes.grammar import Vocabulary
from tests.support.fake_engine import FakeEngine
from tests.support.json_schemas import random_answer
from tests.support.model_folder import BYTE, CONFIG, EOS, VOCABULARY, ids_of, write_model_folder

CHAT: Final = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "7 + 5?"}]}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}, "note": {"type": "string", "maxLength": 5}},
    "required": ["sum"],
    "additionalProperties": False,
}
CLOSING: Final = {**{BYTE + byte: 5.0 for byte in b'"}],'}, EOS: 8.0}
SUMMANDS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "of": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 99},
            "maxItems": 3,
        }
    },
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "add", "strict": True, "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "add_all", "parameters": SUMMANDS}},
    {"type": "function", "function": {"name": "now"}},
]
# Each names its family's marker, and writes nothing of the tools.
TEMPLATES: Final = {
    "hermes": "<tool_call>",
    "mistral": "[TOOL_CALLS]",
    "mistral args": "[TOOL_CALLS][ARGS]",
    "llama 3": "<|python_tag|>",
    "granite": "<|tool_call|>",
    "phi 4": "<|/tool|>",
}


def folder_with(folder: Path, template: str) -> Path:
    config = {**CONFIG, "max_position_embeddings": 1024}
    text = "{% if false %}" + template + "{% endif %}{{ messages[-1].content }}"
    return write_model_folder(folder, template=text, config=config)


def make_special(folder: Path, marker: str) -> None:
    """Let a model write a marker as one special token, the `TURN` of others."""
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"<turn>"', json.dumps(marker)))


def vocabulary_of(folder: Path) -> Vocabulary:
    return Vocabulary((folder / "tokenizer.json").read_bytes(), (EOS,))


def random_engine(folder: Path, seed: int = 1, begun: Sequence[int] = ()) -> FakeEngine:
    """Return an engine that chooses tokens at random, by the grammar if there is one.

    Args:
        begun: What an answer by a grammar begins with.
    """
    vocabulary = vocabulary_of(folder)
    rng = np.random.default_rng(seed)

    def script(generation: Generation) -> list[int]:
        grammar = generation.sampling.grammar
        if not grammar:
            return [*ids_of("It is 12."), EOS]
        return random_answer(
            vocabulary,
            grammar,
            rng,
            eos_id=EOS,
            bias=CLOSING,
            vocab_size=VOCABULARY,
            begun=begun,
        )

    return FakeEngine(script)

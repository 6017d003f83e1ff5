"""A byte-level tokenizer with a vocabulary of any real size, made without text to train on.

After the special tokens and one token per byte come pieces that are built by pairing shorter
ones, so every id has a text of its own, every text has ids, and English takes about as many
tokens as with a small trained vocabulary.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

UNKNOWN_ID, BOS_ID, EOS_ID = 0, 1, 2
SPECIAL_TOKENS: Final = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# In the order of how often they begin an English word, so that small vocabularies are useful.
_LETTERS: Final = "taoiswcbphfmdrenlguvykjqxz"
_SPACE: Final = "Ġ"  # what byte-level tokenizers write for a space

Merge = tuple[str, str]


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` with ``vocab_size`` tokens.

    Raises:
        ValueError: There is no room for special tokens and bytes, or fewer pieces than asked.
    """
    make_tokenizer(vocab_size).save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "bos_token": SPECIAL_TOKENS[BOS_ID],
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "unk_token": SPECIAL_TOKENS[UNKNOWN_ID],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, "utf-8")


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """Return the tokenizer; see `write_tokenizer`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL_TOKENS, *alphabet]
    num_merges = vocab_size - len(tokens)
    if num_merges < 0:
        raise ValueError(f"a vocabulary of {vocab_size} has no room for {len(tokens)} tokens")
    merges = list(islice(_merges(), num_merges))
    if len(merges) < num_merges:
        raise ValueError(f"a vocabulary of {vocab_size} is larger than can be made")
    tokens += [left + right for left, right in merges]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    return tokenizer


def _merges() -> Iterator[Merge]:
    """Yield pairs whose parts are bytes or were yielded before, no text twice."""
    letters = _LETTERS
    pairs = [a + b for a in letters for b in letters]
    yield from ((_SPACE, letter) for letter in letters)
    yield from ((pair[0], pair[1]) for pair in pairs)
    yield from ((_SPACE + letter, pair) for letter in letters for pair in pairs)
    yield from ((pair, other) for pair in pairs for other in pairs)
    yield from ((upper, pair) for upper in string.ascii_uppercase for pair in pairs)

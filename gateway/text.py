"""Text to token ids and back: tokenizer, incremental decoding, stop strings.

Nothing here knows of HTTP, requests or the bus. Streamed and whole answers go through the
same code, so they are the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer as HfTokenizer

# A character is cut by the end of a token: its bytes decode to this until the rest is there.
_INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"
# A UTF-8 character has at most four bytes and a token at least one, so text that is still
# incomplete after more tokens is not UTF-8 and is shown as it is.
_MAX_HELD_TOKENS: Final = 4
# Some decoders strip the space of the first token they are given; with a few tokens of the
# prompt before it, the first token of the answer is not the first.
_CONTEXT_TOKENS: Final = 5


_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Return the character by which a byte-level tokenizer writes each byte (as in GPT-2)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    characters = {chr(byte): byte for byte in shown}
    return characters | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_BYTE_OF: Final = _byte_alphabet()


class TokenizerError(Exception):
    """The tokenizer's file is missing or damaged. The message names it."""


class Tokenizer:
    """A checkpoint's ``tokenizer.json``."""

    def __init__(self, tokenizer: HfTokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids: Final = frozenset(i for i, token in added.items() if token.special)
        self._added = {i: token.content for i, token in added.items()}
        decoder = tokenizer.decoder
        state = "" if decoder is None else json.dumps(json.loads(decoder.__getstate__()))
        self._is_byte_level = '"ByteLevel"' in state

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read ``tokenizer.json``; `TokenizerError` when that is not possible."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"{path} is missing: save the checkpoint with a fast tokenizer "
                "(transformers' save_pretrained writes one)"
            )
        try:
            return cls(HfTokenizer.from_file(str(path)))
        except Exception as error:  # the Rust side raises bare `Exception`
            raise TokenizerError(f"{path} is damaged: {error}") from error

    def to_json(self) -> str:
        """Return the content of a ``tokenizer.json`` that is this tokenizer."""
        return self._tokenizer.to_str()

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Return the ids of ``text``; special tokens written in it count as such."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int], *, keep_special: bool = False) -> str:
        """Return the text of ids; special ones have none unless kept, unknown ones never."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=not keep_special)

    def token_bytes(self, token_id: int) -> bytes:
        """Return what one token stands for, perhaps a part of a character; b"" if unknown."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        if self._is_byte_level:
            parts = (
                bytes([_BYTE_OF[char]]) if char in _BYTE_OF else char.encode() for char in token
            )
            return b"".join(parts)
        if byte := _BYTE.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def token_id(self, token: str) -> int | None:
        """Return the id of a token given by its text, or None."""
        return self._tokenizer.token_to_id(token)


class Detokenizer:
    """Turns ids, one by one, into whole UTF-8 pieces that add up to the text.

    Only a window of the last tokens is decoded again at each step: the tokens since the
    piece before the last one, which a decoder needs to place spaces.

    Args:
        shown_special_ids: Special tokens that have text all the same.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        shown_special_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._hidden_ids = tokenizer.special_ids - shown_special_ids
        self._shown_special_ids = shown_special_ids & tokenizer.special_ids
        self._ids = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._shown = len(self._ids)  # ids before this one are in the text already
        self._shown_text = tokenizer.decode(self._ids)

    def feed(self, token_id: int) -> str:
        """Take the next id; return the text that is now complete, often of one token."""
        if token_id in self._hidden_ids:
            return ""
        if token_id in self._shown_special_ids:
            return self.flush() + self._tokenizer.token_bytes(token_id).decode()
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        incomplete = text.endswith(_INCOMPLETE)
        if incomplete and len(self._ids) - self._shown <= _MAX_HELD_TOKENS:
            return ""
        return self._show(text)

    def flush(self) -> str:
        """Return what is held, replacement characters where it is no whole character."""
        return self._show(self._tokenizer.decode(self._ids))

    def _show(self, text: str) -> str:
        piece = text[len(self._shown_text) :]
        del self._ids[: self._shown]
        self._shown = len(self._ids)
        self._shown_text = self._tokenizer.decode(self._ids)
        return piece


class StopStrings:
    """Finds the first stop string in streamed text, also across pieces.

    Text that may be the beginning of a stop string is held until that is decided.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """Take the next piece; return the text to show and whether a stop string was found.

        The text ends before the stop string. Of several the one that begins first counts.
        """
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """Return the held text: no stop string can follow any more."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that is a proper start of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

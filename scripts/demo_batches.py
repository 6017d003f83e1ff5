"""Turns documents into batches of tensors: tokens, packed rows, what may attend to what."""

import itertools
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tokenizers import Tokenizer

from scripts.demo_corpus import Document

# Text that is not an answer counts a little: it teaches the words, but random operands cannot be
# predicted.
QUESTION_WEIGHT: Final = 0.05
# Documents are packed into rows of this many tokens; a longer one has a row for itself.
ROW_TOKENS: Final = 256
OPEN_ROWS: Final = 32


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenised document; ``weights`` say how much predicting each token counts."""

    ids: list[int]
    weights: list[float]


def tokenise(tokenizer: Tokenizer, corpus: Sequence[Document]) -> list[Example]:
    """Encode piece by piece, so that each token knows whether it belongs to an answer."""
    pieces = [segment for document in corpus for segment in document.segments]
    encoded = tokenizer.encode_batch([piece.text for piece in pieces], add_special_tokens=False)
    tokens = zip(pieces, encoded, strict=True)
    examples = []
    for document in corpus:
        ids: list[int] = []
        weights: list[float] = []
        for piece, encoding in itertools.islice(tokens, len(document.segments)):
            ids += encoding.ids
            weights += [1.0 if piece.learned else QUESTION_WEIGHT] * len(encoding.ids)
        examples.append(Example(ids, weights))
    # A server encodes the whole text at once; training must have seen the same tokens.
    for document, example in zip(corpus[:500], examples, strict=False):
        if tokenizer.encode(document.text, add_special_tokens=False).ids != example.ids:
            raise ValueError(f"pieces and whole are tokenised differently: {document.text!r}")
    return examples


def rows_of(examples: Sequence[Example], row_tokens: int) -> list[list[Example]]:
    """Pack examples into rows of at most ``row_tokens``, first fit; a longer one is a row alone."""
    rows: list[list[Example]] = []
    open_rows: deque[tuple[int, list[Example]]] = deque()
    for example in examples:
        size = len(example.ids)
        for position, (free, row) in enumerate(open_rows):
            if size <= free:
                row.append(example)
                open_rows[position] = (free - size, row)
                break
        else:
            rows.append([example])
            if size < row_tokens:
                open_rows.append((row_tokens - size, rows[-1]))
            # A bounded window keeps neighbours in the corpus near each other, and packing fast.
            if len(open_rows) > OPEN_ROWS:
                open_rows.popleft()
    return rows


def batches_of(
    rows: Sequence[list[Example]], batch_tokens: int, rng: random.Random
) -> list[list[list[Example]]]:
    """Group rows into batches of at most ``batch_tokens`` with their padding, in random order."""
    lengths = [sum(len(example.ids) for example in row) for row in rows]
    full = [row for row, length in zip(rows, lengths, strict=True) if length <= ROW_TOKENS]
    size = max(1, batch_tokens // ROW_TOKENS)
    result = [full[start : start + size] for start in range(0, len(full), size)]
    # Long rows go together, or one of them would pad seven others.
    longer = sorted((length, index) for index, length in enumerate(lengths) if length > ROW_TOKENS)
    batch: list[list[Example]] = []
    for length, index in longer:
        if batch and (len(batch) + 1) * length > batch_tokens:
            result.append(batch)
            batch = []
        batch.append(rows[index])
    if batch:
        result.append(batch)
    rng.shuffle(result)
    return result


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of examples as tensors.

    Attributes:
        ids: [rows, length], padded on the right.
        weights: [rows, length], how much predicting the token counts.
        positions: [rows, length], counted from the start of each example.
        allowed: [rows, 1, length, length], which position may attend to which.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor
    allowed: torch.Tensor


def collate(rows: Sequence[Sequence[Example]]) -> Batch:
    """Make tensors of rows; the examples of a row do not see each other."""
    length = max(sum(len(example.ids) for example in row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    owners = torch.full((len(rows), length), -1)
    for index, row in enumerate(rows):
        start = 0
        for owner, example in enumerate(row):
            end = start + len(example.ids)
            ids[index, start:end] = torch.tensor(example.ids)
            weights[index, start:end] = torch.tensor(example.weights)
            # The first token follows another example, which says nothing about it.
            weights[index, start] = 0.0
            positions[index, start:end] = torch.arange(end - start)
            owners[index, start:end] = owner
            start = end
    same = owners[:, :, None] == owners[:, None, :]
    allowed = (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
    return Batch(ids, weights, positions, allowed)

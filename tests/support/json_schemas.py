"""Random JSON schemas with short values, and answers chosen at random by a grammar."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jsonschema_rs
import numpy as np

from nodes.grammar import Vocabulary
from tests.support.checkpoints import BYTE_OFFSET, EOS_ID

# What ends strings, objects and lists; without a bias towards it random weights seldom do.
CLOSING: Final = {BYTE_OFFSET + byte: 4.0 for byte in b'"}],'}


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """Return a schema with keywords of all kinds; deeper ones have objects and lists in them."""
    simple: list[Callable[[random.Random], dict[str, Any]]] = [
        _text, _text, _number, _number, _choice, lambda _: {"type": "boolean"},
        lambda _: {"type": ["null", "integer"], "minimum": -9, "maximum": 99},
    ]  # fmt: skip
    if depth == 0:
        return rng.choice(simple)(rng)
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: _object(rng, depth),
        lambda: _object(rng, depth),
        lambda: _list(rng, depth),
        lambda: {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randint(2, 3))]},
        lambda: {
            "$ref": "#/$defs/inner",
            "$defs": {"inner": random_schema(rng, depth - 1)},
        },
        lambda: rng.choice(simple)(rng),
    ]
    # A reference means the root of the document, so only the root has one.
    usable = kinds if depth == 2 else [*kinds[:4], kinds[5]]
    return rng.choice(usable)()


def _text(rng: random.Random) -> dict[str, Any]:
    return {
        "type": "string",
        **rng.choice(
            [
                {"maxLength": rng.randint(0, 8)},
                {"minLength": 2, "maxLength": 4},
                {"pattern": "^[a-f]{1,4}-[0-9]{2}$"},
                {"format": rng.choice(["ipv4", "uuid"])},
            ]
        ),
    }


def _number(rng: random.Random) -> dict[str, Any]:
    low = rng.randint(-50, 50)
    return {
        "type": rng.choice(["integer", "number"]),
        rng.choice(["minimum", "exclusiveMinimum"]): low,
        rng.choice(["maximum", "exclusiveMaximum"]): low + rng.randint(2, 2000),
    }


def _choice(rng: random.Random) -> dict[str, Any]:
    values = ["red", 'é\n"', 3, 2.5, None, True, ["x"], {"k": 1}]
    if rng.random() < 0.3:
        return {"const": rng.choice(values)}
    return {"enum": rng.sample(values, 3)}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(["id", "name", "größe", "a b", "x-y", 'q"q'], rng.randint(0, 4))
    return {
        "type": "object",
        "title": "anything",
        "properties": {name: random_schema(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": False,
    }


def _list(rng: random.Random, depth: int) -> dict[str, Any]:
    fewest = rng.randint(0, 2)
    schema = {
        "type": "array",
        "items": random_schema(rng, depth - 1),
        "minItems": fewest,
        "maxItems": fewest + rng.randint(0, 2),
    }
    if rng.random() < 0.3:
        schema["prefixItems"] = [random_schema(rng, 0)]
    return schema


def problem_of(text: str, schema: Mapping[str, Any]) -> str | None:
    """Return why a text is not the JSON of a schema, by a validator of its own; None: it is."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"{error}: {text!r}"
    validator = jsonschema_rs.validator_for(dict(schema), validate_formats=True)
    return next((f"{error.message}: {text!r}" for error in validator.iter_errors(value)), None)


def random_answer(
    vocabulary: Vocabulary,
    grammar: str,
    rng: np.random.Generator,
    *,
    eos_id: int = EOS_ID,
    bias: Mapping[int, float] = CLOSING,
    vocab_size: int = 300,
    max_tokens: int = 400,
    begun: Sequence[int] = (),
) -> list[int]:
    """Return tokens chosen at random among those that a grammar allows, up to its end token.

    Args:
        begun: Those that it begins with; `GrammarError` if the grammar does not allow them.
    """
    guide = vocabulary.grammar(grammar, (eos_id,))
    weights = np.ones(vocab_size)
    weights[list(bias)] = np.exp(list(bias.values()))
    ids = list(begun)
    while len(ids) < max_tokens and (not ids or ids[-1] != eos_id):
        chances = weights * guide.allowed(ids, vocab_size)
        ids.append(int(rng.choice(vocab_size, p=chances / chances.sum())))
    return ids


def text_of(ids: Sequence[int], offset: int = BYTE_OFFSET) -> str:
    """Return the text of tokens that are bytes, without special ones."""
    return bytes(i - offset for i in ids if i >= offset).decode("utf-8", "replace")

"""What answers can be held to: JSON schemas as parts of a grammar, and why one cannot be.

The gateway's one place for llguidance, which nodes use to choose tokens. Here it checks, so that
a request that cannot be carried out is refused before any work.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from math import isfinite, lcm
from pathlib import Path
from typing import Any, Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from gateway.errors import ApiError

MAX_GRAMMAR_BYTES: Final = 128 * 1024
"""It travels with the prompt in one message of at most 1 MiB."""

MAX_MULTIPLE: Final = 50_000
"""A grammar has a state for each remainder: 50 MB and half a second for 100,000 of them."""

OBJECT: Final[Mapping[str, Any]] = {"type": "object"}

# On one line, with a space after a comma or a colon or without: a model at a loss writes white
# space to the end of its context wherever it may.
_OPTIONS: Final = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_OPTIONS_KEY: Final = "x-guidance"
_UNKNOWN_KEYS: Final = re.compile(r"Unimplemented keys: \[(.*?)\]")
_REGEX_ERROR: Final = re.compile(r"regex parse error:.*^error: (.*?)$", re.DOTALL | re.MULTILINE)
# Where in the grammar it is, which is no text of the client's.
_PLACE: Final = re.compile(r"^at [\d()]+: (failed to compile JSON schema: )?")
# Their values are no schemas, whatever they look like.
_VALUES: Final = frozenset({"const", "default", "enum", "example", "examples"})
_LIMITS: Final = LLParserLimits(verbose_errors=False)


def json_rule(schema: Mapping[str, Any]) -> str:
    """Return the part of a rule that stands for the JSON of a schema."""
    return f"%json {json.dumps({**schema, _OPTIONS_KEY: _OPTIONS})}"


def json_grammar(schema: Mapping[str, Any]) -> str:
    """Return the grammar of a text that is the JSON of a schema."""
    return f"start: {json_rule(schema)}"


def check_schema(schema: Mapping[str, Any], param: str) -> None:
    """Refuse a schema that cannot be enforced; `ApiError` 400 that says what of it.

    Args:
        schema: Draft 2020-12, or the draft that its ``$schema`` names.
        param: The field that holds it.
    """
    problem = _unsupported(schema) or grammar_problem(json_grammar(schema))
    if problem is not None:
        raise ApiError(
            400,
            f"the JSON schema cannot be enforced: {problem}",
            param=param,
            code="unsupported_schema",
        )


@lru_cache(maxsize=128)
def grammar_problem(text: str) -> str | None:
    """Return why a grammar cannot be used; None: it can."""
    if len(text) > MAX_GRAMMAR_BYTES:
        return f"it takes {len(text)} bytes, at most {MAX_GRAMMAR_BYTES} are allowed"
    message = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(text), limits=_LIMITS)
    if not message or message.startswith("WARNING"):
        return None
    if keys := _UNKNOWN_KEYS.search(message):
        names = re.findall(r'"([^"]*)"', keys[1])
        quoted = ", ".join(repr(name) for name in names)
        return f"{quoted} {'is' if len(names) == 1 else 'are'} not supported"
    if "coerce_one_of" in message:
        return "oneOf is not supported where its schemas do not exclude each other"
    if found := _REGEX_ERROR.search(message):
        return f"pattern is not supported: {found[1]}"
    return _PLACE.sub("", message).strip().splitlines()[0]


@lru_cache(maxsize=4)
def tokenizer_problem(folder: Path, eos_token_ids: tuple[int, ...]) -> str | None:
    """Return why a model's tokens cannot be held to a grammar; None: they can.

    Takes about a second for 128,000 tokens, once.
    """
    if not eos_token_ids:
        return "it has no end token"
    try:
        LLTokenizer(str(folder / "tokenizer.json"), eos_token=list(eos_token_ids))
    except Exception as error:  # the Rust side raises many kinds
        return str(error)
    return None


def _unsupported(schema: Mapping[str, Any]) -> str | None:
    """Return what llguidance would take, but not as the client means it."""
    if _OPTIONS_KEY in schema:
        return f"{_OPTIONS_KEY} is not supported"
    if _common_multiple(schema) > MAX_MULTIPLE:
        return f"multipleOf is only supported where all have a multiple up to {MAX_MULTIPLE}"
    for part in _parts(schema):
        # A key that is no property may come twice there, and would count twice.
        fewest = part.get("minProperties", 0)
        required = part.get("required")
        num_required = len(required) if isinstance(required, list) else 0
        if isinstance(fewest, int) and fewest > max(num_required, 1):
            return f"minProperties of {fewest} with {num_required} required ones is not supported"
    return None


def _common_multiple(schema: Mapping[str, Any]) -> int:
    """Return the least common multiple of all ``multipleOf``, in units of the smallest digit."""
    found = [part.get("multipleOf") for part in _parts(schema)]
    values = [Fraction(value) for value in found if type(value) is int]
    # By its digits: a float is a multiple of some power of two.
    values += [
        Fraction(str(value)) for value in found if isinstance(value, float) if isfinite(value)
    ]
    unit = lcm(*(value.denominator for value in values))
    return lcm(*(int(value * unit) for value in values))


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object in a schema that may be one."""
    if isinstance(value, Mapping):
        yield value
        for key, inner in value.items():
            if key not in _VALUES:
                yield from _parts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _parts(inner)

"""One request in the journal: its fields and tokens as they are written. Pure."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import msgspec

from broker.control import ModelManifest
from broker.events import Logprobs
from gateway.requests import Generation, Written


@dataclass(slots=True)
class Entry:
    """A request that is live, or not wholly written yet.

    Attributes:
        tokens: As in Redis.
        num_written: Tokens in Redis; None: the entry must be written from its beginning.
        is_closed: Nothing more is said of it here: it ended, or it was found after a restart.
        num_spooled: Tokens in Redis and the spool together; None: the spool has nothing of it.
        refreshed_at: When its expiry in Redis was set last, by `time.monotonic`.
    """

    fields: dict[str, str]
    tokens: list[str] = field(default_factory=list)
    num_written: int | None = None
    is_closed: bool = False
    num_spooled: int | None = None
    refreshed_at: float = 0.0


def new_entry(generation: Generation, model: ModelManifest | None) -> Entry:
    """Return the entry of a request that was accepted, or goes on with the tokens that it has."""
    fields = {
        "body": json.dumps(generation.body, default=str),
        "prompt_ids": json.dumps(generation.prompt_ids),
        "seed": str(generation.sampling.seed),
        "parameters": json.dumps(
            {
                "max_tokens": generation.max_tokens,
                "deadline_seconds": generation.deadline_seconds,
                # Built-in types with text keys, since a logit bias has integers; without
                # the grammar, which follows from the body and may be long.
                "sampling": msgspec.to_builtins(
                    msgspec.structs.replace(generation.sampling, grammar=""), str_keys=True
                ),
            }
        ),
        "model": model.name if model is not None else "",
        "revision": model.revision if model is not None else "",
        "weights": model.weights if model is not None else "",
        "status": "running",
        "started_at": f"{time.time():.3f}",
        "created": str(generation.created),
        "caller": generation.caller,
    }
    pairs = zip_longest(generation.generated, generation.generated_logprobs)
    return Entry(fields, tokens=[item_of(token, logprobs) for token, logprobs in pairs])


def item_of(token_id: int, logprobs: Logprobs | None) -> str:
    """Return a token as it stands in the list."""
    if logprobs is None:
        return str(token_id)
    return f"{token_id} {msgspec.json.encode(logprobs).decode()}"


def as_written(fields: dict[str, str], items: Sequence[str]) -> Written:
    """Return what fields and list say of a request."""
    pairs = [item.partition(" ")[::2] for item in items]
    logprobs = [msgspec.json.decode(text, type=Logprobs) if text else None for _, text in pairs]
    known = tuple(logprobs) if any(logprobs) else ()
    return Written(fields, tuple(int(token_id) for token_id, _ in pairs), known)

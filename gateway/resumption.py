"""Answers that go on over another connection: after a gateway restarted, or a client's link broke.

What was asked and the tokens so far are in the journal. The tokens are replayed through the
same text path, so the client gets the same chunks again, less those that it says it has; the
rest is generated as after any failure, with equal tokens.

Each event of a stream has an id: how many tokens of each choice the client has with it, such
as ``12`` or ``12,8``. A client sends the last one as ``Last-Event-ID``, as browsers do.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Final

from gateway.answers import close_tokens
from gateway.errors import ApiError, invalid_value
from gateway.model import ServedModel
from gateway.requests import GeneratedToken, Generation, TokenSource, Written

_POSITION: Final = re.compile(r"\d{1,9}(,\d{1,9})*")


class Resumed:
    """Gives the tokens that are known, then those that the engine adds."""

    def __init__(self, engine: TokenSource) -> None:
        self._engine = engine

    async def generate(self, generation: Generation) -> AsyncGenerator[GeneratedToken, None]:
        """Yield all tokens of a choice from the first; see `TokenSource.generate`."""
        for index, token_id in enumerate(generation.generated):
            logprobs = generation.generated_logprobs
            token = GeneratedToken(
                index,
                token_id,
                _finish_reason(generation, index),
                logprobs[index] if logprobs else None,
            )
            yield token
            if token.finish_reason is not None:
                return
        tokens = self._engine.generate(generation)
        try:
            async for token in tokens:
                yield token
        finally:
            await close_tokens(tokens)


def continued(
    planned: Sequence[Generation], written: Sequence[Written | None], num_streams: int
) -> list[Generation]:
    """Return the choices of an answer, to go on behind the tokens that are written.

    Args:
        planned: The choices as the same request makes them now.
        written: What the journal has of each; None: it had not begun.
        num_streams: Number of this stream; part of the ids on the bus, so that what stages
            still have of an earlier stream is not mistaken for this one.
    """
    made = []
    for generation, known in zip(planned, written, strict=True):
        entry = generation.request_id
        generation = replace(generation, request_id=f"{entry}~{num_streams}", entry=entry)
        if known is not None:
            generation = replace(
                generation,
                prompt_ids=tuple(json.loads(known.fields["prompt_ids"])),
                max_tokens=json.loads(known.fields["parameters"])["max_tokens"],
                generated=known.tokens,
                generated_logprobs=known.logprobs,
                # An admin may read it on, and it stays its caller's.
                caller=known.fields.get("caller", ""),
            )
        made.append(generation)
    return made


def model_problem(written: Written, model: ServedModel) -> str | None:
    """Return why an answer cannot go on with a model; None: it can."""
    manifest = model.manifest
    for name, began, now in (
        ("model", written.fields["model"], manifest.name),
        ("revision", written.fields["revision"], manifest.revision),
        ("weights", written.fields["weights"], manifest.weights),
    ):
        if began != now:
            return f"the answer began with {name} {began!r}, and {now!r} is served now; ask again"
    return None


def check_model(written: Written, model: ServedModel) -> None:
    """Refuse to go on with another model, revision or weight format; `ApiError` 409."""
    problem = model_problem(written, model)
    if problem is not None:
        raise ApiError(409, problem, code="model_changed")


def parse_position(text: str | None, num_choices: int) -> tuple[int, ...]:
    """Return how many tokens of each choice a client has by its ``Last-Event-ID``.

    Raises:
        ApiError: It is no id of an event of this answer.
    """
    if not text:
        return (0,) * num_choices
    if not _POSITION.fullmatch(text) or text.count(",") != num_choices - 1:
        raise invalid_value(
            "Last-Event-ID",
            f"{text[:40]!r} is not the id of an event of this answer, which has "
            f"{num_choices} number(s)",
        )
    return tuple(int(part) for part in text.split(","))


def _finish_reason(generation: Generation, index: int) -> str | None:
    """Return why a known token ended the answer, by the rule of the last stage."""
    sampling = generation.sampling
    if generation.generated[index] in sampling.eos_token_ids and not sampling.ignore_eos:
        return "stop"
    return "length" if index + 1 == generation.max_tokens else None

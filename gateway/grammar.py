"""What an answer must be, as the grammar that nodes choose tokens by."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from gateway.constraints import (
    check_schema,
    grammar_problem,
    json_grammar,
    json_rule,
    tokenizer_problem,
)
from gateway.errors import ApiError, invalid_value
from gateway.model import ServedModel
from gateway.response_format import PARAM, format_schema, is_constrained
from gateway.schemas import GenerationRequest
from gateway.text import Tokenizer
from gateway.tools.forced import Mark, literal
from gateway.tools.harmony import Harmony
from gateway.tools.optional import json_or_calls, text_or_calls
from gateway.tools.schemas import ToolUse


async def plan_grammar(
    request: GenerationRequest, tools: ToolUse | None, model: ServedModel
) -> str:
    """Return the grammar of a request's answers; "": they may be anything.

    Raises:
        ApiError: 400 that names the field which cannot be carried out.
    """
    if not is_constrained(request.response_format) and not (tools and tools.is_held):
        return ""
    # Checking a large schema takes as long as many tokens of other streams.
    return await asyncio.to_thread(_grammar, request, tools, model)


def _grammar(request: GenerationRequest, tools: ToolUse | None, model: ServedModel) -> str:
    wanted = request.response_format
    is_json = wanted is not None and is_constrained(wanted)
    param = PARAM if is_json else "tool_choice" if tools and tools.opening else "tools"
    _check_together(request, tools, param)
    if problem := tokenizer_problem(model.folder, model.eos_token_ids):
        raise ApiError(
            400,
            f"answers of model {model.name} cannot be held to a grammar: {problem}",
            param=param,
            code="grammar_not_supported",
        )
    schema = format_schema(wanted) if wanted is not None and is_json else None
    if tools is not None:
        return _grammar_of_calls(tools, model, schema)
    assert schema is not None
    return json_grammar(schema)


def _grammar_of_calls(tools: ToolUse, model: ServedModel, schema: Mapping[str, Any] | None) -> str:
    """Return the grammar of an answer that must or may be calls, and else is JSON of a schema."""
    for where, callee in tools.callees:
        check_schema(callee.schema, where)
    callees = [callee for _, callee in tools.callees]
    form, mark = tools.format, _mark(model.tokenizer)
    if isinstance(form, Harmony):
        _check_markers(form, model)
    if tools.opening:
        text = form.grammar(callees, mark, is_named=tools.is_named)
    elif isinstance(form, Harmony):
        rule = None if schema is None else json_rule(schema)
        text = form.answer_grammar(callees, mark, rule)
    elif schema is not None:
        text = json_or_calls(form, callees, mark, json_rule(schema))
    else:
        text = text_or_calls(form, callees, mark, _other_tokens(model, form.markers))
    if problem := grammar_problem(text):
        raise invalid_value("tools", f"calls of these tools cannot be enforced: {problem}")
    return text


def _check_markers(form: Harmony, model: ServedModel) -> None:
    """Refuse a tokenizer whose markers of messages are text like any other."""
    for marker in form.markers:
        if model.tokenizer.token_id(marker) not in model.tokenizer.special_ids:
            raise ApiError(
                400,
                f"answers of model {model.name} cannot be held to a grammar: {marker} is no "
                "special token of its tokenizer",
                param="tools",
                code="grammar_not_supported",
            )


def _mark(tokenizer: Tokenizer) -> Mark:
    """Return how a grammar names a marker: models write it as one token, where it is special."""

    def mark(text: str) -> str:
        token_id = tokenizer.token_id(text)
        return f"<[{token_id}]>" if token_id in tokenizer.special_ids else literal(text)

    return mark


def _other_tokens(model: ServedModel, markers: Iterable[str]) -> str:
    """Return how a grammar names the special tokens that neither mark calls nor end answers."""
    known = {model.tokenizer.token_id(marker) for marker in markers}
    others = sorted(model.tokenizer.special_ids - known - set(model.eos_token_ids))
    # Runs of them: some tokenizers have hundreds in reserve.
    runs = [
        [token_id for _, token_id in run]
        for _, run in groupby(enumerate(others), lambda pair: pair[1] - pair[0])
    ]
    return f"<[{','.join(f'{run[0]}-{run[-1]}' for run in runs)}]>" if runs else ""


def _check_together(request: GenerationRequest, tools: ToolUse | None, param: str) -> None:
    if tools is not None and tools.is_beside_json and not tools.format.marker:
        raise invalid_value(
            PARAM,
            f"{PARAM} does not go together with tools of this model, whose calls are JSON too; "
            "set tool_choice",
        )
    if request.ignore_eos:
        raise invalid_value("ignore_eos", f"ignore_eos does not go together with {param}")
    if request.min_tokens:
        raise invalid_value("min_tokens", f"min_tokens does not go together with {param}")

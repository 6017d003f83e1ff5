"""What an answer must be, as the grammar that nodes choose tokens by."""

from __future__ import annotations

import asyncio

from gateway.constraints import check_schema, grammar_problem, tokenizer_problem
from gateway.errors import ApiError, invalid_value
from gateway.model import ServedModel
from gateway.response_format import PARAM, format_grammar, is_constrained
from gateway.schemas import GenerationRequest
from gateway.text import Tokenizer
from gateway.tools.forced import Mark, literal
from gateway.tools.schemas import ToolUse


async def plan_grammar(
    request: GenerationRequest, tools: ToolUse | None, model: ServedModel
) -> str:
    """Return the grammar of a request's answers; "": they may be anything.

    Raises:
        ApiError: 400 that names the field which cannot be carried out.
    """
    is_call = tools is not None and bool(tools.forced)
    if not is_call and not is_constrained(request.response_format):
        return ""
    # Checking a large schema takes as long as many tokens of other streams.
    return await asyncio.to_thread(_grammar, request, tools, model)


def _grammar(request: GenerationRequest, tools: ToolUse | None, model: ServedModel) -> str:
    param = PARAM if is_constrained(request.response_format) else "tool_choice"
    _check_together(request, tools, param)
    if problem := tokenizer_problem(model.folder, model.eos_token_ids):
        raise ApiError(
            400,
            f"answers of model {model.name} cannot be held to a grammar: {problem}",
            param=param,
            code="grammar_not_supported",
        )
    if tools is None:
        return format_grammar(request.response_format)
    for where, callee in tools.forced:
        check_schema(callee.schema, where)
    text = tools.format.grammar(
        [callee for _, callee in tools.forced], _mark(model.tokenizer), is_named=tools.is_named
    )
    if problem := grammar_problem(text):
        raise invalid_value("tools", f"calls of these tools cannot be enforced: {problem}")
    return text


def _mark(tokenizer: Tokenizer) -> Mark:
    """Return how a grammar names a marker: models write it as one token, where it is special."""

    def mark(text: str) -> str:
        token_id = tokenizer.token_id(text)
        return f"<[{token_id}]>" if token_id in tokenizer.special_ids else literal(text)

    return mark


def _check_together(request: GenerationRequest, tools: ToolUse | None, param: str) -> None:
    if param == PARAM and tools is not None:
        raise invalid_value(
            param, f"{PARAM} does not go together with tools; set tool_choice to none"
        )
    if request.ignore_eos:
        raise invalid_value("ignore_eos", f"ignore_eos does not go together with {param}")
    if request.min_tokens:
        raise invalid_value("min_tokens", f"min_tokens does not go together with {param}")

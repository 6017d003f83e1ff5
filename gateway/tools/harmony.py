"""gpt-oss: a call is a message to a function, ``... to=functions.NAME ...<|message|>{...}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.tools.channels import (
    CHANNEL,
    CONSTRAIN,
    END,
    FUNCTIONS,
    MARKERS,
    MESSAGE,
    START,
    ChannelReader,
)
from gateway.tools.forced import Callee, Mark, grammar_of, literal

_TO: Final = f"commentary to={FUNCTIONS}"


class Harmony:
    """gpt-oss. One answer has at most one call when it is held to a grammar.

    Args:
        takes_calls: Whether there are functions that an answer may call.
    """

    def __init__(self, *, takes_calls: bool = True) -> None:
        self._takes_calls = takes_calls

    @property
    def marker(self) -> str:
        return CHANNEL

    @property
    def markers(self) -> Sequence[str]:
        return MARKERS

    def reader(self) -> ChannelReader:
        return ChannelReader(takes_calls=self._takes_calls)

    def opening(self, name: str | None) -> str:
        opening = f"{CHANNEL}{_TO}"
        return opening if name is None else f"{opening}{name} {CONSTRAIN}json{MESSAGE}"

    def grammar(self, callees: Sequence[Callee], mark: Mark, *, is_named: bool) -> str:
        if is_named:
            return grammar_of(callees, ["arguments_0"])
        return grammar_of(callees, ["call"], _calls(callees, mark))

    def answer_grammar(self, callees: Sequence[Callee], mark: Mark, json_rule: str | None) -> str:
        """Return the grammar of an answer that thinks, and then calls or answers.

        Args:
            callees: The functions that may be called; none: it answers.
            mark: Writes the markers, which must be special tokens.
            json_rule: What the answer is; None: any text.
        """
        channel, message = mark(CHANNEL), mark(MESSAGE)
        # What a commentary says is shown, so it would stand beside the JSON.
        thoughts = '"analysis"' if json_rule else '("analysis" | "commentary")'
        call = f" | {channel} {literal(_TO)} call" if callees else ""
        begun = grammar_of(callees, [f"thought* (final{call})"], _calls(callees, mark))
        return "\n".join(
            [
                begun,
                f"thought: {channel} {thoughts} {message} TEXT {mark(END)} {mark(START)} "
                + literal("assistant"),
                f"final: {channel} {literal('final')} {message} {'json' if json_rule else 'TEXT'}",
                *([f"json: {json_rule}"] if json_rule else []),
                "TEXT: /(?s:.*)/",
            ]
        )

    def call_id(self, digest: str) -> str:
        return f"call_{digest[:24]}"

    def for_template(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]] | None]:
        """Return messages and tools with what the template needs, see `ShapesMessages`."""
        shaped = [_with_thinking(message) for message in messages]
        return shaped, None if tools is None else [_with_description(tool) for tool in tools]


def _calls(callees: Sequence[Callee], mark: Mark) -> list[str]:
    middle = f"{literal(' ')} {mark(CONSTRAIN)} {literal('json')} {mark(MESSAGE)}"
    return [
        f"{literal(callee.name)} {middle} arguments_{number}"
        for number, callee in enumerate(callees)
    ]


def _with_thinking(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message with its thoughts under the template's name for them.

    The template refuses thoughts and content together in a message that calls.
    """
    thoughts = message.get("reasoning_content")
    if not thoughts:
        return message
    shaped = {key: value for key, value in message.items() if key != "reasoning_content"}
    if "tool_calls" in message and message["content"]:
        return {**shaped, "thinking": f"{thoughts}\n{message['content']}", "content": ""}
    return {**shaped, "thinking": thoughts}


def _with_description(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a tool that says what it is: the template fails on one that does not."""
    return {**tool, "function": {"description": "", **tool["function"]}}

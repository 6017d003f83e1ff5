"""`e2llm chat`: a conversation with a running fog, line by line."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Console

from fog.answer import Answer
from fog.client import FogClient, FogRequestError, Message, Question
from fog.welcome import answer_figures

HELP = "/new begins a new conversation, /quit (or Ctrl-D) ends."


class Conversation(NamedTuple):
    """What came of a chat.

    Attributes:
        turns: Each question that was answered, with the answer and its figures.
        num_refused: Questions that the gateway refused.
    """

    turns: list[dict[str, Any]]
    num_refused: int


def run_chat(
    client: FogClient,
    console: Console,
    *,
    temperature: float = 0.0,
    max_tokens: int | None = None,
    read_line: Callable[[str], str] = input,
) -> Conversation:
    """Ask what is typed, with the conversation so far, until the input ends.

    ``read_line`` shows its argument and returns a line; it raises EOFError at the end.

    Raises:
        FogUnreachableError: No fog answers, or it went away.
    """
    with contextlib.suppress(ModuleNotFoundError):
        # Gives `input` line editing and the arrow keys where Python was built with it.
        importlib.import_module("readline")
    model = client.model()
    console.print(f"{model} at {client.url}. {HELP}", markup=False, highlight=False)
    messages: list[Message] = []
    turns: list[dict[str, Any]] = []
    num_refused = 0
    while True:
        try:
            line = read_line("\n> ").strip()
        except EOFError:
            console.print()
            return Conversation(turns, num_refused)
        if line == "/quit":
            return Conversation(turns, num_refused)
        if line == "/new":
            messages = []
        elif line.startswith("/"):
            console.print(HELP, highlight=False)
        elif line:
            model = _model_now(client, console, model)
            asked: list[Message] = [*messages, {"role": "user", "content": line}]
            question = Question(messages=asked, max_tokens=max_tokens, temperature=temperature)
            try:
                answer = _answer(client, console, model, question)
            except FogRequestError as error:
                # For example: the conversation no longer fits. The person decides how to go on.
                console.print(f"refused: {error}", style="red", markup=False, highlight=False)
                num_refused += 1
                continue
            if answer is not None:
                messages = [*asked, {"role": "assistant", "content": answer.text}]
                turns.append({"question": line, **dataclasses.asdict(answer)})


def _model_now(client: FogClient, console: Console, model: str) -> str:
    """Return the model that the fog serves now, and say so where that is another one."""
    with contextlib.suppress(FogRequestError):
        served = client.model()
        if served != model:
            console.print(f"(the fog serves {served} now)", markup=False, highlight=False)
        return served
    return model


def _answer(client: FogClient, console: Console, model: str, question: Question) -> Answer | None:
    """Ask one question and show what comes; None if the person stopped it."""

    def show(text: str) -> None:
        console.print(text, end="", markup=False, highlight=False, soft_wrap=True, emoji=False)

    try:
        answer = client.ask(question, model, show)
    except KeyboardInterrupt:
        # Closing the connection cancelled the work on the devices.
        console.print("\n[dim](stopped)[/dim]")
        return None
    console.print(f"\n[dim]{answer_figures(answer)}[/dim]", highlight=False)
    return answer

"""`e2llm chat`: a conversation with a running fog, line by line."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable

from rich.console import Console

from fog.client import FogClient, FogRequestError, Message, Question
from fog.welcome import answer_figures

HELP = "/new begins a new conversation, /quit (or Ctrl-D) ends."


def run_chat(
    client: FogClient,
    console: Console,
    *,
    temperature: float = 0.0,
    max_tokens: int | None = None,
    read_line: Callable[[str], str] = input,
) -> None:
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
    while True:
        try:
            line = read_line("\n> ").strip()
        except EOFError:
            console.print()
            return
        if line == "/quit":
            return
        if line == "/new":
            messages = []
        elif line.startswith("/"):
            console.print(HELP, highlight=False)
        elif line:
            messages = _turn(client, console, model, messages, line, temperature, max_tokens)


def _turn(
    client: FogClient,
    console: Console,
    model: str,
    messages: list[Message],
    line: str,
    temperature: float,
    max_tokens: int | None,
) -> list[Message]:
    """Ask one question; return the conversation after it, unchanged if it failed."""
    asked: list[Message] = [*messages, {"role": "user", "content": line}]
    question = Question(messages=asked, max_tokens=max_tokens, temperature=temperature)

    def show(text: str) -> None:
        console.print(text, end="", markup=False, highlight=False, soft_wrap=True, emoji=False)

    try:
        answer = client.ask(question, model, show)
    except FogRequestError as error:
        # For example: the conversation no longer fits. The person decides how to go on.
        console.print(f"refused: {error}", style="red", markup=False, highlight=False)
        return messages
    except KeyboardInterrupt:
        # Closing the connection cancelled the work on the devices.
        console.print("\n[dim](stopped)[/dim]")
        return messages
    console.print(f"\n[dim]{answer_figures(answer)}[/dim]", highlight=False)
    return [*asked, {"role": "assistant", "content": answer.text}]

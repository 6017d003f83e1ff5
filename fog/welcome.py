"""What `e2llm up` says when the fog is ready: the plan, an answer, and how to go on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from shutil import which
from typing import Any

from rich.console import Console

from fog.answer import Answer
from fog.client import DEFAULT_URL, KEY_VARIABLE
from fog.quantities import format_seconds
from fog.tables import plan_view


def print_welcome(
    console: Console, plan: Mapping[str, Any], ready_seconds: float, question: str
) -> None:
    """Print the plan and the question that is about to be asked."""
    console.print(f"[green]Ready[/green] after {ready_seconds:.1f} s.\n", highlight=False)
    console.print(plan_view(plan))
    console.print("\n[bold]Question[/bold]  ", end="", highlight=False)
    console.print(question, markup=False, highlight=False, soft_wrap=True)
    console.print("[bold]Answer[/bold]    ", end="", highlight=False)


def activation(environment: Path, search: str | None) -> str | None:
    """Return the command after which a shell finds `e2llm`; None if it does, or nothing helps.

    Args:
        environment: In which this Python runs, `sys.prefix`.
        search: ``PATH``.
    """
    script = environment / "bin" / "activate"
    if which("e2llm", path=search) is not None or not script.is_file():
        return None
    return f"source {shlex.quote(str(script))}"


def print_next_steps(
    console: Console,
    url: str,
    model: str,
    question: str,
    activate: str | None,
    *,
    needs_key: bool = False,
) -> None:
    """Print where the fog listens and what to try; ``activate`` as of `activation`."""
    console.print(
        f"\nThe fog listens on [bold]{url}[/bold] (OpenAI-compatible; in a browser, the "
        "dashboard). Try:\n",
        highlight=False,
        soft_wrap=True,
    )
    line = curl_line(url, model, question, needs_key=needs_key)
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    flag = "" if url == DEFAULT_URL else f" --url {url}"
    commands = {
        f"e2llm chat{flag}": "talk to it",
        f"e2llm plan{flag}": "who holds which layers, predicted and measured",
        f"e2llm devices{flag}": "how each device is",
    }
    width = max(map(len, commands))
    lines = [f"  {command:<{width}}  {purpose}" for command, purpose in commands.items()]
    first = f", after `{activate}`" if activate is not None else ""
    key = f"\nAll of them need an API key in {KEY_VARIABLE}." if needs_key else ""
    text = "\n".join(
        [f"\nOr in another terminal{first}:\n", *lines, f"{key}\nCtrl-C stops everything."]
    )
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def answer_figures(answer: Answer) -> str:
    """Return TTFT, rate and length of an answer in one line."""
    parts = [f"TTFT {format_seconds(answer.ttft_seconds)}"]
    if answer.tokens_per_second is not None:
        parts.append(f"{answer.tokens_per_second:.1f} tokens/s")
    parts.append(f"{len(answer.token_ids)} tokens")
    return ", ".join(parts)


def curl_line(url: str, model: str, question: str, *, needs_key: bool = False) -> str:
    """Return a command that asks the same question, ready to paste into a shell.

    A key stands in it as the variable that holds it.
    """
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if needs_key else ""
    body = {"model": model, "messages": [{"role": "user", "content": question}]}
    return (
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\\n"
        f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
    )

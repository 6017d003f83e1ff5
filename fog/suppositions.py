"""`e2llm plan --what-if CHANGE`: what the running fog's planner would plan. Pure but for `run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.text import Text

from fog.client import FogClient
from fog.output import write_json
from fog.quantities import format_bytes, format_seconds
from fog.tables import plan_view

Json = Mapping[str, Any]

_FORMS: Final = "drop=ID, slow=ID:FACTOR, add=DEVICE or add=ID:DEVICE"


class SuppositionError(ValueError):
    """A change is written wrongly; the message says how it is written."""


def parse_suppositions(texts: Sequence[str]) -> dict[str, Any]:
    """Return the body of ``POST /fog/what-if``.

    Raises:
        SuppositionError: Names the option.
    """
    drop: list[str] = []
    slow: dict[str, float] = {}
    add: list[dict[str, str]] = []
    for text in texts:
        verb, _, what = text.partition("=")
        first, _, second = what.partition(":")
        if verb == "drop" and first and not second:
            drop.append(what)
        elif verb == "slow" and first and second:
            slow[first] = _factor(text, second)
        elif verb == "add" and first:
            # Without a name of its own it is called like what it is like, and numbered.
            like = second or first
            name = first if second else f"{like}-{len(add) + 1}"
            add.append({"id": name, "like": like})
        else:
            raise SuppositionError(f"--what-if {text}: write {_FORMS}")
    return {"drop": drop, "slow": slow, "add": add}


def _factor(text: str, factor: str) -> float:
    try:
        return float(factor)
    except ValueError:
        raise SuppositionError(
            f"--what-if {text}: {factor!r} is no factor; 2 means that it takes twice as long"
        ) from None


def run(client: FogClient, texts: Sequence[str], json_target: str | None, console: Console) -> bool:
    """Ask, show the answer, and return whether there would be a plan.

    Raises:
        SuppositionError: A change is written wrongly.
    """
    body = parse_suppositions(texts)
    with console.status("Planning ..."):
        answer = client.change("POST", "/fog/what-if", body)
    write_json(json_target, answer)
    if json_target is None:
        console.print(answer_view(answer))
    return answer.get("plan") is not None


def answer_view(answer: Json) -> RenderableType:
    """Return the plan as a table, with what would change below it."""
    plan = answer.get("plan")
    lines = [Text(line) for line in _lines(answer)]
    if plan is None:
        return Group(Text("The fog could not serve the model.", "bold"), *lines)
    return Group(plan_view(plan), *lines)


def _lines(answer: Json) -> Iterator[str]:
    kept = "the replicas would stay: " if answer.get("keeps_replicas") else ""
    yield f"Why: {kept}{answer.get('reason', '?')}"
    before = (answer.get("before") or {}).get("requests_per_second")
    after = ((answer.get("plan") or {}).get("predicted") or {}).get("requests_per_second")
    if before and after:
        yield (
            f"Predicted: {after:.3g} requests/s instead of {before:.3g} ({after / before - 1:+.0%})"
        )
    for move in answer.get("moves") or ():
        size, seconds = format_bytes(move["num_bytes"]), format_seconds(move["seconds"])
        yield f"{move['device']} would load {size}, {seconds} over its link"
    if by_sheet := answer.get("by_data_sheet"):
        yield f"By data sheet, not measured: {', '.join(by_sheet)}; prefill is off by up to half"
    yield "Nothing was changed."

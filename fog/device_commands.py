"""``e2llm device``: what an owner asks of a device of a running fog."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from broker.topics import InvalidTopicLevelError, check_level
from fog.account import connect
from fog.client import FogClient
from fog.options import EXIT_FAILED, JsonOption, KeyOption, UrlOption, give_up
from fog.output import make_console, write_json

_LOOK_SECONDS: Final = 0.5

device = typer.Typer(
    no_args_is_help=True,
    help="Take a device out of the running fog, or back, or remove it.",
    rich_markup_mode=None,
)


def _check_id(name: str) -> str:
    """Refuse what no device can be called; in a shell it is often a variable that is empty."""
    try:
        return check_level(name)
    except InvalidTopicLevelError as error:
        raise typer.BadParameter(f"no device has this name: {error}") from error


IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Name of the device.", callback=_check_id)
]


@device.command()
def cordon(
    name: IdArgument,
    url: UrlOption = None,
    api_key: KeyOption = None,
    json_target: JsonOption = None,
) -> None:
    """Give the device nothing new; what it has it keeps."""
    _ask(
        connect(url, api_key), name, "cordon", json_target, "keeps what it has and gets nothing new"
    )


@device.command()
def uncordon(
    name: IdArgument,
    url: UrlOption = None,
    api_key: KeyOption = None,
    json_target: JsonOption = None,
) -> None:
    """Let the device be used again."""
    _ask(connect(url, api_key), name, "uncordon", json_target, "may be used")


@device.command()
def remove(
    name: IdArgument,
    url: UrlOption = None,
    api_key: KeyOption = None,
    json_target: JsonOption = None,
) -> None:
    """Remove a device that does not come back: its credential, its tokens, all that is kept of it.

    Drain it first if it serves. It needs a new token to join again.
    """
    removed = connect(url, api_key).change("DELETE", f"/fog/devices/{quote(name, safe='')}")
    write_json(json_target, removed)
    if json_target is None:
        make_console().print(_removed_text(name, removed), highlight=False, soft_wrap=True)


@device.command()
def drain(
    name: IdArgument,
    url: UrlOption = None,
    api_key: KeyOption = None,
    json_target: JsonOption = None,
    wait: Annotated[
        float,
        typer.Option("--wait", min=0, metavar="SECONDS", help="Longest wait until it is empty."),
    ] = 60.0,
) -> None:
    """Let others take over what the device does, and wait until it holds nothing.

    Requests go on without a gap where memory allows. A device that nobody can replace keeps
    its layers; `e2llm plan --history` says so.
    """
    client = connect(url, api_key)
    placed = client.place_device(name, "drain")
    deadline = time.monotonic() + wait
    while stages := _stages(client, name):
        if time.monotonic() >= deadline:
            give_up(
                f"e2llm: {name} still holds {', '.join(stages)} after {wait:g} s; "
                "`e2llm plan --history` may say why",
                EXIT_FAILED,
            )
        time.sleep(_LOOK_SECONDS)
    write_json(json_target, placed)
    if json_target is None:
        make_console().print(f"{name} holds nothing and may be switched off.", highlight=False)


def _removed_text(name: str, removed: dict[str, Any]) -> str:
    sentences = [f"{name} was removed."]
    if removed["credential"] != "removed":
        sentences.append(
            "The broker may still know it: this gateway cannot take users out, or there was none "
            "of this name (docs/access.md)."
        )
    if removed["tokens"]:
        sentences.append(
            f"Tokens for it that are no good any more: {', '.join(removed['tokens'])}."
        )
    if not removed["forgotten"]:
        sentences.append("It is forgotten when a planner runs.")
    return " ".join(sentences)


def _ask(client: FogClient, name: str, verb: str, json_target: str | None, meaning: str) -> None:
    placed = client.place_device(name, verb)
    write_json(json_target, placed)
    if json_target is None:
        make_console().print(f"{name} {meaning}.", highlight=False)


def _stages(client: FogClient, name: str) -> list[str]:
    (found,) = [entry for entry in client.devices() if entry["id"] == name]
    return list(found.get("stages") or ())

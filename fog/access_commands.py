"""``e2llm key`` and ``e2llm token``: who may use the gateway, and which devices may join."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fog.account import connect
from fog.options import EXIT_FAILED, EXIT_USAGE, JsonOption, KeyOption, UrlOption, give_up
from fog.output import make_console, write_json
from fog.quantities import parse_duration

DEFAULT_TOKEN_SECONDS: Final = 3600.0

key = typer.Typer(no_args_is_help=True, help="API keys of a gateway.", rich_markup_mode=None)
token = typer.Typer(
    no_args_is_help=True, help="Tokens with which devices join.", rich_markup_mode=None
)


def _parse_expiry(text: str) -> float:
    """Return seconds from ``90min`` or ``7d``."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


ExpiresOption = Annotated[
    float | None,
    typer.Option(
        "--expires", metavar="TIME", parser=_parse_expiry, help="As in 90min or 7d; default: never."
    ),
]
TokenExpiresOption = Annotated[
    float | None,
    typer.Option(
        "--expires", metavar="TIME", parser=_parse_expiry, help="As in 90min or 7d; default: 1h."
    ),
]
LimitOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Default: no limit.")]


@key.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is, for people.")],
    scope: Annotated[
        str, typer.Option("--scope", help="user: ask; admin: everything else, too.")
    ] = "user",
    expires: ExpiresOption = None,
    requests_per_minute: LimitOption = None,
    tokens_per_minute: LimitOption = None,
    concurrency: LimitOption = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Write it into the state folder of a gateway (E2LLM_GATEWAY_STATE), which need "
            "not run: for the first key.",
        ),
    ] = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    json_target: JsonOption = None,
) -> None:
    """Make an API key and print it; nobody can see it again."""
    if scope not in {"user", "admin"}:
        give_up(f"e2llm: --scope {scope}: use user or admin", EXIT_USAGE)
    wanted: dict[str, Any] = {
        "name": name,
        "scope": scope,
        "expires_seconds": expires,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrency": concurrency,
    }
    if state is not None:
        made = _write_key(state, wanted)
    else:
        made = connect(url, api_key).create_key(wanted)
    write_json(json_target, made)
    if json_target is None:
        print(made["key"])
        # Not on standard output, which is the key and nothing else.
        print(
            "Keep it: nobody can see it again. With keys, every request needs one.", file=sys.stderr
        )


@key.command("list")
def list_keys(
    url: UrlOption = None, api_key: KeyOption = None, json_target: JsonOption = None
) -> None:
    """Show all keys and tokens, without what is secret in them."""
    from fog.access_tables import keys_table

    keys = connect(url, api_key).keys()
    write_json(json_target, keys)
    if json_target is None:
        make_console().print(keys_table(keys, time.time()))


@key.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `e2llm key list` shows it.")],
    url: UrlOption = None,
    api_key: KeyOption = None,
    json_target: JsonOption = None,
) -> None:
    """End a key or a token, at every gateway of the site within seconds."""
    ended = connect(url, api_key).revoke_key(key_id)
    write_json(json_target, ended)
    if json_target is None:
        make_console().print(
            f"{ended['name']} ({ended['id']}) is revoked.", markup=False, highlight=False
        )


def _write_key(state: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Make a key in a gateway's state folder; one that runs there looks every 2 seconds."""
    from gateway.access.keys import KeyRefusedError, KeyRing, Limits, Scope, make_key
    from gateway.access.store import KeyFile, KeyFileError

    if not state.is_dir():
        give_up(f"e2llm: --state {state} is no folder; start a gateway there first", EXIT_USAGE)
    now = time.time()
    try:
        text, made = make_key(
            wanted["name"],
            Scope(wanted["scope"]),
            now,
            expires_at=None
            if wanted["expires_seconds"] is None
            else now + wanted["expires_seconds"],
            limits=Limits(**{field: wanted[field] for field in Limits.__struct_fields__}),
        )

        def add(ring: KeyRing) -> KeyRing:
            return ring.added(made, now)

        KeyFile(state).update(add)
    except KeyRefusedError as error:
        give_up(f"e2llm: {error}", EXIT_USAGE)
    except KeyFileError as error:
        give_up(f"e2llm: {error}", EXIT_FAILED)
    return {"key": text, "id": made.id, "name": made.name, "scope": made.scope.value}


@token.command("create")
def create_token(
    expires: TokenExpiresOption = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="ID",
            help="Good for this device alone, also when it has joined before; default: any "
            "that has not.",
        ),
    ] = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    json_target: JsonOption = None,
) -> None:
    """Make a token with which devices join until it expires, and print it."""
    wanted = {
        "name": device or "any device",
        "scope": "join",
        "expires_seconds": DEFAULT_TOKEN_SECONDS if expires is None else expires,
        "device": device,
    }
    made = connect(url, api_key).create_key(wanted)
    write_json(json_target, made)
    if json_target is None:
        print(made["key"])

"""``e2llm node``: this machine as a device of somebody's fog."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fog.options import EXIT_FAILED, EXIT_USAGE, JsonOption, give_up
from fog.output import make_console, write_json

node = typer.Typer(no_args_is_help=True, help="This machine as a device.", rich_markup_mode=None)

NameOption = Annotated[
    str | None,
    typer.Option("--id", metavar="NAME", help="Of this device; default: the machine's name."),
]
NodeStateOption = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="DIR",
        help="Where its credential and what it fetches are kept; default: one per device.",
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help='What it offers, as in "2 GiB"; default: 70 % of what is free.',
    ),
]


@node.command()
def join(
    token: Annotated[
        str,
        typer.Option("--token", envvar="E2LLM_JOIN_TOKEN", help="From `e2llm token create`."),
    ],
    gateway: Annotated[
        str | None,
        typer.Option("--gateway", metavar="URL", help="Default: looked for by mDNS."),
    ] = None,
    interface: Annotated[
        list[str] | None,
        typer.Option("--interface", metavar="NAME", help="Look on this one. May be repeated."),
    ] = None,
    name: NameOption = None,
    memory: MemoryOption = None,
    state: NodeStateOption = None,
    no_start: Annotated[
        bool, typer.Option("--no-start", help="Only get the credential; `e2llm node start` starts.")
    ] = False,
    json_target: JsonOption = None,
) -> None:
    """Bring this machine into a fog: get a credential, then compute for it.

    It goes on until it is stopped with Ctrl-C; `e2llm node start` starts it again. Every setting
    of `python -m nodes --help` may be given in the environment.
    """
    from fog import joining

    console = make_console(json_target)
    device = name or joining.this_device()
    folder = (state or joining.default_state(device, os.environ)).absolute()
    try:
        if not no_start:
            joining.check_node()
        url = gateway or _look(interface or [], lambda line: console.print(line, highlight=False))
        joined = joining.join(url, token, device)
        joining.keep(joined, folder)
        joining.try_broker(joined)
    except (joining.JoinError, OSError) as error:
        give_up(f"e2llm: {error}", EXIT_FAILED)
    write_json(
        json_target,
        {
            "device": joined.device,
            "site": joined.site,
            "gateway": joined.gateway,
            "broker": str(joined.broker),
            "state": str(folder),
        },
    )
    console.print(
        f"{joined.device} has joined {joined.gateway} (broker {joined.broker.host}:"
        f"{joined.broker.port}); its credential is in {folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if not no_start:
        joining.become_node(joined, folder, memory)


@node.command()
def start(
    name: NameOption = None, memory: MemoryOption = None, state: NodeStateOption = None
) -> None:
    """Start this machine as the device that it has joined as."""
    from fog import joining

    device = name or joining.this_device()
    folder = (state or joining.default_state(device, os.environ)).absolute()
    try:
        joining.check_node()
        joined = joining.kept(folder)
    except joining.JoinError as error:
        give_up(f"e2llm: {error}", EXIT_USAGE)
    joining.become_node(joined, folder, memory)


def _look(wanted: Sequence[str], tell: Callable[[str], None]) -> str:
    """Return the URL of the gateway that answers by mDNS."""
    # zeroconf is an extra of its own: `fog.cli` says how to get it.
    from broker.discovery import look
    from broker.interfaces import interfaces_here
    from fog.joining import LOOK_SECONDS, find_gateway

    def answers(address: str) -> list[tuple[str, str]]:
        return [(found.name, found.url) for found in look(address, LOOK_SECONDS)]

    return find_gateway(interfaces_here(), wanted, tell, answers)

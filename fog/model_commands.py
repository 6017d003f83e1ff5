"""``e2llm model``: which models a running fog has, and which of them it serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fog.account import connect
from fog.client import FogClient
from fog.options import EXIT_FAILED, HeldWeightsOption, JsonOption, KeyOption, UrlOption, give_up
from fog.output import make_console, write_json
from fog.tables import model_line, models_table

_LOOK_SECONDS: Final = 0.5
_WAIT_SECONDS: Final = 3600.0

model = typer.Typer(
    no_args_is_help=True,
    help="Add models to the running fog, and change which one it serves.",
    rich_markup_mode=None,
)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")]
WaitOption = Annotated[
    float,
    typer.Option("--wait", min=0, metavar="SECONDS", help="Longest wait; 0: do not wait."),
]

Json = Mapping[str, Any]


@model.command("list")
def list_models(
    url: UrlOption = None, api_key: KeyOption = None, json_target: JsonOption = None
) -> None:
    """Show the models, and how far the fog is with each."""
    found = connect(url, api_key).models()
    write_json(json_target, found)
    if json_target is None:
        make_console().print(models_table(found))


@model.command()
def add(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A folder or GGUF file on the gateway's machine, or a hub id."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name that requests use; default: its folder, file or id."),
    ] = None,
    weights: HeldWeightsOption = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    json_target: JsonOption = None,
    wait: WaitOption = _WAIT_SECONDS,
) -> None:
    """Download and check a model, and let the devices measure themselves for it.

    The fog goes on with what it serves; `e2llm model use` changes to the new one.
    """
    client = connect(url, api_key)
    path = Path(source).expanduser()
    added = client.add_model(str(path.absolute()) if path.exists() else source, name, weights)

    def is_ready(found: Sequence[Json]) -> bool:
        return _one(found, added["name"])["state"] not in ("preparing",)

    watched = _watch(
        client, lambda each: each["name"] == added["name"], is_ready, wait, json_target
    )
    found = _one(watched, added["name"])
    write_json(json_target, found)
    if found["state"] == "refused":
        give_up(f"e2llm: {found['detail']}", EXIT_FAILED)


@model.command()
def use(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Name of the model.")],
    url: UrlOption = None,
    api_key: KeyOption = None,
    json_target: JsonOption = None,
    wait: WaitOption = _WAIT_SECONDS,
) -> None:
    """Let the fog serve this model, and wait until it does and the others have left.

    The model before it goes on until the new one is loaded, where memory holds both; what was
    asked of it is answered. Without room for both its requests end first, and new ones wait.
    """
    client = connect(url, api_key)
    client.use_models(names)

    def is_done(found: Sequence[Json]) -> bool:
        others = [each for each in found if each["name"] not in names]
        return all(_one(found, name)["state"] == "serving" for name in names) and all(
            each["state"] not in ("serving", "leaving") for each in others
        )

    def is_part(each: Json) -> bool:
        return each["in_use"] or each["state"] in ("serving", "leaving")

    found = _watch(client, is_part, is_done, wait, json_target)
    write_json(json_target, found)
    if wait and not is_done(found):
        waiting = "; ".join(model_line(each) for each in found)
        give_up(f"e2llm: not done after {wait:g} s: {waiting}", EXIT_FAILED)


@model.command()
def remove(
    name: NameArgument,
    url: UrlOption = None,
    api_key: KeyOption = None,
    json_target: JsonOption = None,
) -> None:
    """Forget a model that is not in use; its files stay where they are."""
    found = connect(url, api_key).remove_model(name)
    write_json(json_target, found)
    if json_target is None:
        make_console().print(f"{name} is removed.", markup=False, highlight=False)


def _one(found: Sequence[Json], name: str) -> Json:
    return next(each for each in found if each["name"] == name)


def _watch(
    client: FogClient,
    is_told: Callable[[Json], bool],
    is_done: Callable[[Sequence[Json]], bool],
    wait_seconds: float,
    json_target: str | None,
) -> list[dict[str, Any]]:
    """Print what changes until it is done, or the time is over; return what there is then.

    Of a model that was told of once, the rest is told, too.
    """
    console = make_console(json_target)
    deadline = time.monotonic() + wait_seconds
    told: dict[str, str] = {}
    while True:
        found = client.models()
        for each in found:
            name, line = each["name"], model_line(each)
            if (name in told or is_told(each)) and told.get(name) != line:
                told[name] = line
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        if is_done(found) or time.monotonic() >= deadline:
            return found
        time.sleep(_LOOK_SECONDS)

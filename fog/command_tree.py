"""The commands of `e2llm` with their options, as the parser has them. Pure.

For what must say the same as the parser: completion in shells, and the reference page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer.main


@dataclass(frozen=True, slots=True)
class CommandOption:
    """An option.

    Attributes:
        names: With their dashes, the long ones first.
        takes_value: Whether a word follows it.
        help: One sentence.
    """

    names: tuple[str, ...]
    takes_value: bool
    help: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or a group of them.

    Attributes:
        path: Its words, ``e2llm`` first.
        help: Its first sentence.
        arguments: Their names.
        commands: Those below it.
    """

    path: tuple[str, ...]
    help: str
    options: tuple[CommandOption, ...]
    arguments: tuple[str, ...]
    commands: tuple[Command, ...]

    def walk(self) -> Iterator[Command]:
        """Yield this command and all below it."""
        yield self
        for command in self.commands:
            yield from command.walk()


def command_tree(app: typer.Typer, name: str = "e2llm") -> Command:
    """Return what a typer application can be asked."""
    return _command(typer.main.get_command(app), (name,))


def _command(made: Any, path: tuple[str, ...]) -> Command:
    parameters = [each for each in made.params if not getattr(each, "hidden", False)]
    options = [each for each in parameters if each.param_type_name == "option"]
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    below = getattr(made, "commands", {})
    return Command(
        path,
        _sentence(made.help),
        tuple(_option(each) for each in options),
        tuple(each.metavar or each.name.upper() for each in arguments),
        tuple(_command(below[name], (*path, name)) for name in below),
    )


def _option(made: Any) -> CommandOption:
    names = sorted({*made.opts, *made.secondary_opts}, key=len, reverse=True)
    return CommandOption(tuple(names), not made.is_flag, _sentence(made.help))


def _sentence(text: str | None) -> str:
    """Return the first paragraph on one line."""
    return " ".join((text or "").strip().partition("\n\n")[0].split())

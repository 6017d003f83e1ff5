"""Scripts with which shells complete `e2llm`: bash, zsh and fish. Pure.

They hold the commands and options themselves, so that a press of Tab starts no Python. A script
walks the words typed so far to the command that they name, and offers what may follow there;
where nothing does, files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from fog.command_tree import Command

HELP: Final = "--help"


def bash_script(tree: Command) -> str:
    """Return what ``source <(e2llm completion bash)`` reads."""
    return f"""\
_e2llm() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" place={_place(tree)} i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$place/${{COMP_WORDS[i]}}" in
            {_places(tree)}) place="$place/${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$place" in
{_cases(tree, lambda words: f'COMPREPLY=($(compgen -W "{words}" -- "$word"))')}
    esac
}}
complete -o default -F _e2llm e2llm
"""


def zsh_script(tree: Command) -> str:
    """Return what ``source <(e2llm completion zsh)`` reads."""
    return f"""\
#compdef e2llm
_e2llm() {{
    local place={_place(tree)} word
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "$place/$word" in
            {_places(tree)}) place="$place/$word" ;;
        esac
    done
    case "$place" in
{_cases(tree, lambda words: f"compadd -- {words} || _files")}
    esac
}}
compdef _e2llm e2llm
"""


def fish_script(tree: Command) -> str:
    """Return what ``e2llm completion fish | source`` reads."""
    lines = [
        "function __e2llm_place",
        f"    set -l place {_place(tree)}",
        "    for word in (commandline -opc)[2..-1]",
        '        switch "$place/$word"',
        f"            case {_places(tree).replace('|', ' ')}",
        '                set place "$place/$word"',
        "        end",
        "    end",
        "    echo $place",
        "end",
    ]
    for command in tree.walk():
        here = f"complete -c e2llm -n 'test (__e2llm_place) = {_place(command)}'"
        lines += [
            f"{here} -f -a {below.path[-1]} -d {_quoted(below.help)}" for below in command.commands
        ]
        for option in command.options:
            value = " -r" if option.takes_value else ""
            lines += [
                f"{here} -l {name.removeprefix('--')}{value} -d {_quoted(option.help)}"
                for name in option.names
                if name.startswith("--")
            ]
    return "\n".join(lines) + "\n"


SCRIPTS: Final[Mapping[str, Callable[[Command], str]]] = {
    "bash": bash_script,
    "zsh": zsh_script,
    "fish": fish_script,
}


def _place(command: Command) -> str:
    return "/".join(command.path)


def _places(tree: Command) -> str:
    return "|".join(_place(command) for command in tree.walk() if command is not tree)


def _cases(tree: Command, offer: Callable[[str], str]) -> str:
    return "\n".join(
        f"        {_place(command)}) {offer(' '.join(_words(command)))} ;;"
        for command in tree.walk()
    )


def _words(command: Command) -> list[str]:
    names = [below.path[-1] for below in command.commands]
    options = [name for option in command.options for name in option.names]
    return [*names, *dict.fromkeys([*options, HELP])]


def _quoted(text: str) -> str:
    """Return a text as one word of fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

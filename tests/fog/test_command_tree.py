"""Completion and the reference page say what the parser says."""

import re
import subprocess
from pathlib import Path

import pytest

from fog import options
from fog.command_tree import Command, command_tree
from fog.commands import app
from fog.completion import SCRIPTS, bash_script
from tests.support.command_line import e2llm

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
TREE = command_tree(app)
LEAVES = {" ".join(command.path): command for command in TREE.walk() if not command.commands}
# Those that run until they are stopped, go on as another process, or print a script.
WITHOUT_RESULT = {"e2llm completion", "e2llm node start"}


def sections() -> dict[str, str]:
    """Return the page's sections about commands."""
    found = re.split(r"^### `(e2llm[^`]*)`$", PAGE, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def test_every_command_has_its_section_and_no_other() -> None:
    assert set(sections()) == set(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_and_argument_is_in_its_table_and_no_other(name: str) -> None:
    rows = [line for line in sections()[name].splitlines() if line.startswith("| `")]
    documented = {word for row in rows for word in re.findall(r"`([^`]+)`", row.split(" | ")[0])}
    command = LEAVES[name]
    options = {name for option in command.options for name in option.names}
    assert documented == options | set(command.arguments)


def test_every_command_with_a_result_writes_it_as_json() -> None:
    without = {
        name
        for name, command in LEAVES.items()
        if not any("--json" in option.names for option in command.options)
    }
    assert without == WITHOUT_RESULT


def test_the_exit_codes_are_those_of_the_code() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, flags=re.MULTILINE)}
    ours = {value for name, value in vars(options).items() if name.startswith("EXIT_")}
    assert documented == {0, 130} | ours


# --- completion -----------------------------------------------------------------------------


def completed(*words: str) -> set[str]:
    """Return what bash offers for the last word."""
    script = f"""{bash_script(TREE)}
COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
COMP_CWORD={len(words) - 1}
_e2llm
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def names(command: Command) -> set[str]:
    return {below.path[-1] for below in command.commands}


def test_bash_offers_commands_then_those_below_then_options() -> None:
    assert names(TREE) <= completed("e2llm", "")
    assert completed("e2llm", "key", "") - {"--help"} == {"create", "list", "revoke"}
    assert "--requests-per-minute" in completed("e2llm", "key", "create", "lamp", "--re")
    assert completed("e2llm", "key", "create", "--url", "http://x", "--sc") == {"--scope"}
    assert completed("e2llm", "nothing-of-ours-", "x") == set()


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_for_each_shell_names_every_command_and_option(shell: str) -> None:
    script = e2llm("completion", shell).stdout
    for command in TREE.walk():
        assert "/".join(command.path) in script
        for option in command.options:
            assert option.names[0].removeprefix("--") in script


def test_another_shell_is_refused_with_those_that_there_are() -> None:
    result = e2llm("completion", "csh")
    assert result.returncode == 2
    assert "bash, zsh, fish" in result.stderr

"""Settings: read once, and a mistake stops the process with its name."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.settings import SettingsError, process_settings, read_settings


@dataclass(frozen=True)
class Example:
    """An example.

    Attributes:
        threads: Threads that compute; each takes
            a core.
        slowdown, quiet: Both said at once, with ``marks``.

    Other: nothing of this.
    """

    broker: str
    id: str
    threads: int = 1
    slowdown: float = 1.0
    quiet: bool = False
    state: Path | None = None

    def __post_init__(self) -> None:
        if self.slowdown <= 0:
            raise ValueError("slowdown must be greater than 0")


BASE = {"E2LLM_BROKER": "mqtt://a:b@h:1", "E2LLM_NODE_ID": "pi"}


def read(**extra: str) -> Example:
    return read_settings(Example, "E2LLM_NODE_", {**BASE, **extra})


def test_values_are_parsed_by_their_type() -> None:
    settings = read(
        E2LLM_NODE_THREADS="3", E2LLM_NODE_SLOWDOWN="2.5", E2LLM_NODE_QUIET="yes",
        E2LLM_NODE_STATE="/tmp/x", E2LLM_GATEWAY_PORT="9",
    )  # fmt: skip
    assert settings == Example("mqtt://a:b@h:1", "pi", 3, 2.5, True, Path("/tmp/x"))


def test_defaults_hold_and_an_empty_variable_counts_as_not_set() -> None:
    assert read(E2LLM_NODE_THREADS="") == Example("mqtt://a:b@h:1", "pi")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("THREADS", "two"), ("SLOWDOWN", "fast"), ("QUIET", "maybe"), ("COLOUR", "green")],
)
def test_a_malformed_or_unknown_setting_is_named(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"E2LLM_NODE_{variable}"):
        read(**{f"E2LLM_NODE_{variable}": value})


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(SettingsError, match="E2LLM_NODE_ID is not set"):
        read_settings(Example, "E2LLM_NODE_", {"E2LLM_BROKER": "mqtt://h"})


def test_what_the_class_itself_refuses_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="slowdown must be greater than 0"):
        read(E2LLM_NODE_SLOWDOWN="-1")


def test_a_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "broker"
    secret.write_text("mqtt://a:secret@h:1\n")
    environ = {"E2LLM_BROKER_FILE": str(secret), "E2LLM_NODE_ID": "pi"}
    assert read_settings(Example, "E2LLM_NODE_", environ).broker == "mqtt://a:secret@h:1"


def test_a_secret_file_that_is_missing_is_named(tmp_path: Path) -> None:
    environ = {"E2LLM_BROKER_FILE": str(tmp_path / "none"), "E2LLM_NODE_ID": "pi"}
    with pytest.raises(SettingsError, match="E2LLM_BROKER_FILE"):
        read_settings(Example, "E2LLM_NODE_", environ)


def test_help_lists_every_variable_with_default_and_meaning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        process_settings(Example, "E2LLM_NODE_", "python -m nodes", ["--help"])

    assert ended.value.code == 0
    text = capsys.readouterr().out
    for line in (
        "E2LLM_BROKER (required)",
        "E2LLM_NODE_ID (required)",
        "E2LLM_NODE_THREADS (default: 1)\n    Threads that compute; each takes a core.",
        "E2LLM_NODE_SLOWDOWN (default: 1.0)\n    Both said at once, with marks.",
        "E2LLM_NODE_QUIET (default: False)\n    Both said at once, with marks.",
        "E2LLM_NODE_STATE (not set)",
    ):
        assert line in text
    assert "Other" not in text


@pytest.mark.parametrize(
    ("environ", "argv", "what"),
    [
        ({}, [], "python -m nodes: E2LLM_BROKER is not set"),
        (BASE, ["--threads", "2"], "takes no arguments, but got '--threads 2'"),
        ({**BASE, "E2LLM_NODE_SLOWDOWN": "0"}, [], "E2LLM_NODE_SLOWDOWN: slowdown must be"),
    ],
    ids=["missing", "arguments", "refused"],
)
def test_a_mistake_ends_the_process_with_one_line(
    environ: dict[str, str],
    argv: list[str],
    what: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("E2LLM_")]:
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as ended:
        process_settings(Example, "E2LLM_NODE_", "python -m nodes", argv)

    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1

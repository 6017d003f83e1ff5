"""The reference page of the HTTP API and the code say the same."""

import json
import re
from pathlib import Path

import pytest

from gateway.foreign import IGNORED, REFUSED
from gateway.schemas import ChatRequest, CompletionRequest

PAGE = Path(__file__).parents[2] / "docs/http-api.md"


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading."""
    _, _, after = PAGE.read_text("utf-8").partition(f"## {heading}\n")
    section = after.partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1:]]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", cell))


@pytest.mark.parametrize(
    ("column", "request_type"), [(1, ChatRequest), (2, CompletionRequest)], ids=["chat", "text"]
)
def test_every_supported_parameter_is_in_the_table_and_no_other(
    column: int, request_type: type[ChatRequest] | type[CompletionRequest]
) -> None:
    documented = [names(row[0]) for row in rows("Parameters") if row[column] == "yes"]
    assert set().union(*documented) == set(request_type.model_fields)


def test_every_refused_parameter_is_in_the_table_with_what_it_may_be() -> None:
    documented = {name: row[1] for row in rows("Refused") for name in names(row[0])}
    assert set(documented) == set(REFUSED)
    for name, neutral in REFUSED.items():
        written = re.findall(r"`([^`]+)`", documented[name])
        assert written == [shown(value) for value in neutral], name


def shown(value: object) -> str:
    """Return a neutral value as JSON in the page."""
    return json.dumps(value)


def test_every_ignored_parameter_is_named() -> None:
    _, _, section = PAGE.read_text("utf-8").partition("## Ignored\n")
    assert names(section.partition("\n## ")[0]) == set(IGNORED)

"""What the documents say of the code and of each other."""

import json
from pathlib import Path
from typing import Any

import pytest

from broker.topics import ALL_TOPICS
from scripts import pictures, reference
from tests.support.documents import ROOT, blocks, broken_links, commands, documents

# Its link stands for one that a new record will have.
LINKING = [path for path in documents() if path.name != "0000-template.md"]


@pytest.mark.parametrize("path", LINKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(path: Path) -> None:
    assert list(broken_links(path)) == []


@pytest.mark.parametrize("name", list(reference.pages()))
def test_a_page_of_the_reference_is_what_the_code_says(name: str) -> None:
    assert (reference.FOLDER / name).read_text("utf-8") == reference.pages()[name], (
        "run: python scripts/reference.py"
    )


@pytest.mark.parametrize("name", list(pictures.PICTURES))
def test_a_picture_is_what_its_script_draws(name: str) -> None:
    drawn = pictures.PICTURES[name]().svg()
    assert (pictures.FOLDER / name).read_text("utf-8") == drawn, "run: python scripts/pictures.py"


def test_the_bus_as_asyncapi_has_every_topic_and_defines_what_it_refers_to() -> None:
    document = reference.asyncapi()
    addresses = {channel["address"] for channel in document["channels"].values()}
    assert addresses == {f"e2llm/v1/{{site}}/{topic.template}" for topic in ALL_TOPICS}
    for pointer in references(document):
        found: Any = document
        for level in pointer.removeprefix("#/").split("/"):
            found = found[level]


def references(value: Any) -> list[str]:
    """Return every ``$ref`` in a document."""
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [each for inner in value.values() for each in references(inner)]
    if isinstance(value, list):
        return [each for inner in value for each in references(inner)]
    return []


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_json_and_toml_in_a_document_can_be_read(path: Path) -> None:
    for block in blocks(path, "json"):
        json.loads(block.text.replace("...", ""))


def test_commands_that_no_test_runs_say_why() -> None:
    found = [block for path in documents() for block in commands(path)]
    left_out = [block for block in found if block.not_run is not None]
    print(f"{len(found)} blocks of commands, {len(left_out)} of them not run:")
    for block in left_out:
        print(f"  {block.name}: {block.not_run}")
    assert found
    assert all(block.not_run for block in left_out)

"""The OpenAPI document: its references lead somewhere, and what it says of statuses is true."""

import json
from collections.abc import Iterator
from typing import Any

from tests.support.fuzzing import run
from tests.support.gateway_api import Api


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


async def test_every_reference_of_the_document_leads_to_a_schema_in_it(api: Api) -> None:
    document = json.loads((await api.get("/openapi.json")).text)
    found = set(references(document))
    assert "#/components/schemas/Message" in found
    assert found <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


async def test_requests_of_all_kinds_get_no_error_of_the_server_and_no_undocumented_status() -> (
    None
):
    """A short run; `make fuzz` is the long one."""
    status, said = await run("--max-examples", "3", "--seed", "3", "--phases", "fuzzing")
    assert status == 0, said

"""The OpenAPI document: its references lead somewhere."""

import json
from collections.abc import Iterator
from typing import Any

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

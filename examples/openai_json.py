"""The `openai` package and JSON of a schema: also a small model can only answer what fits."""

import os
from typing import Literal

import openai
from pydantic import BaseModel, Field


class Sum(BaseModel):
    """What a sum has come to."""

    operation: Literal["plus", "minus"]
    result: int = Field(ge=0, le=99)


client = openai.OpenAI(
    base_url=os.environ.get("E2LLM_URL", "http://127.0.0.1:8080") + "/v1",
    api_key=os.environ.get("E2LLM_API_KEY", "none"),
)
model = client.models.list().data[0].id
answer = client.chat.completions.parse(
    model=model,
    messages=[{"role": "user", "content": "What is 7 plus 5?"}],
    response_format=Sum,
)
found = answer.choices[0].message.parsed
assert found is not None
print(f"7 {found.operation} 5: {found.result}")

# A schema that cannot be held to is refused before any device works.
schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
try:
    client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is 7 plus 5?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "sums", "schema": schema}},
    )
except openai.BadRequestError as error:
    print(f"Refused: {error.code}")

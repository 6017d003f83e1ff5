"""The `openai` package with tools: the model asks for a function, we call it, it answers.

It needs a model that calls functions (docs/http-api.md, "Tools"), which the demo model does not.
"""

import os

import openai
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field


class Temperature(BaseModel):
    """Measure how warm a room is, in degrees Celsius."""

    room: str = Field(description="The room's name, in small letters")

    def measure(self) -> float:
        """Return what the room's sensor says."""
        return {"cellar": 11.5, "kitchen": 21.0}[self.room]


client = openai.OpenAI(
    base_url=os.environ.get("E2LLM_URL", "http://127.0.0.1:8080") + "/v1",
    api_key=os.environ.get("E2LLM_API_KEY", "none"),
)
model = client.models.list().data[0].id
tools = [openai.pydantic_function_tool(Temperature, name="temperature")]
messages: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "How warm is the cellar?"}
]

with client.chat.completions.stream(model=model, messages=messages, tools=tools) as stream:
    for event in stream:
        if event.type == "tool_calls.function.arguments.delta":
            print(event.arguments_delta, end="", flush=True)
    asking = stream.get_final_completion().choices[0].message
print()

messages.append(asking.to_dict())  # type: ignore[arg-type]  # It is one, with all its fields.
for call in asking.tool_calls or ():
    wanted = call.function.parsed_arguments
    assert isinstance(wanted, Temperature)
    answer = f"{wanted.measure()} degrees"
    messages.append({"role": "tool", "tool_call_id": call.id, "content": answer})
final = client.chat.completions.create(model=model, messages=messages, tools=tools)
print(final.choices[0].message.content)

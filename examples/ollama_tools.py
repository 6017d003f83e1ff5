"""The `ollama` package with tools: the model asks for a function, we call it, it answers.

It needs a model that calls functions (docs/http-api.md, "Tools"), which the demo model does not.
"""

import os

import ollama


def temperature(room: str) -> str:
    """Measure how warm a room is, in degrees Celsius.

    Args:
        room: The room's name, in small letters.
    """
    return f"{ {'cellar': 11.5, 'kitchen': 21.0}[room] } degrees"


client = ollama.Client(host=os.environ.get("E2LLM_URL", "http://127.0.0.1:8080"))
model = client.list().models[0].model
messages = [{"role": "user", "content": "How warm is the cellar?"}]

asking = client.chat(model, messages, tools=[temperature]).message
messages.append(asking)
for call in asking.tool_calls or ():
    print(f"{call.function.name} of {call.function.arguments['room']}")
    content = temperature(**call.function.arguments)
    messages.append({"role": "tool", "tool_name": call.function.name, "content": content})
print(client.chat(model, messages, tools=[temperature]).message.content)

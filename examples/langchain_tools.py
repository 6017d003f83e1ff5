"""LangChain with tools: the model asks for a function, we call it, it answers.

It needs a model that calls functions (docs/http-api.md, "Tools"), which the demo model does not.
"""

import os

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

URL = os.environ.get("E2LLM_URL", "http://127.0.0.1:8080") + "/v1"
KEY = os.environ.get("E2LLM_API_KEY", "none")


def temperature(room: str) -> str:
    """Measure how warm a room is, in degrees Celsius."""
    return f"{ {'cellar': 11.5, 'kitchen': 21.0}[room] } degrees"


model = openai.OpenAI(base_url=URL, api_key=KEY).models.list().data[0].id
chat = ChatOpenAI(model=model, base_url=URL, api_key=KEY).bind_tools([temperature])

messages = [HumanMessage("How warm is the cellar?")]
asking = chat.invoke(messages)
messages.append(asking)
for call in asking.tool_calls:
    print(f"{call['name']} of {call['args']['room']}")
    messages.append(ToolMessage(temperature(**call["args"]), tool_call_id=call["id"]))
print(chat.invoke(messages).text)

"""LangChain: an answer as it comes, an error, and leaving in the middle."""

import os

import openai
from langchain_openai import ChatOpenAI

URL = os.environ.get("E2LLM_URL", "http://127.0.0.1:8080") + "/v1"
KEY = os.environ.get("E2LLM_API_KEY", "none")


def chat(model: str, **options: object) -> ChatOpenAI:
    """Return a chat model of LangChain that is answered by the fog."""
    return ChatOpenAI(model=model, base_url=URL, api_key=KEY, max_retries=0, **options)


model = openai.OpenAI(base_url=URL, api_key=KEY).models.list().data[0].id

for chunk in chat(model, stream_usage=True).stream("What is 7 plus 5?"):
    print(chunk.text, end="", flush=True)
    if chunk.usage_metadata:
        print(f"\n{chunk.usage_metadata['output_tokens']} tokens")

try:
    chat("gpt-4").invoke("Are you there?")
except openai.NotFoundError as error:
    print(f"Refused: {error.code}")

# Closing the iterator closes the connection, and the devices stop working on the answer.
stream = chat(model, max_tokens=1000, extra_body={"ignore_eos": True}).stream("What is 7 plus 5?")
for number, _ in enumerate(stream):
    if number == 10:
        break
stream.close()
print("Left in the middle.")

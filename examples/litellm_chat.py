"""LiteLLM: an answer as it comes, an error, and leaving in the middle."""

import os

import litellm
import openai

URL = os.environ.get("E2LLM_URL", "http://127.0.0.1:8080") + "/v1"
KEY = os.environ.get("E2LLM_API_KEY", "none")
QUESTION = [{"role": "user", "content": "What is 7 plus 5?"}]
model = openai.OpenAI(base_url=URL, api_key=KEY).models.list().data[0].id
# "openai/" tells LiteLLM which protocol is spoken there.
fog = {"api_base": URL, "api_key": KEY, "messages": QUESTION}

stream = litellm.completion(
    f"openai/{model}", stream=True, stream_options={"include_usage": True}, **fog
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if getattr(chunk, "usage", None):
        print(f"\n{chunk.usage.completion_tokens} tokens")

try:
    litellm.completion("openai/gpt-4", **fog)
except litellm.NotFoundError as error:
    print(f"Refused: {error.status_code}")

# Closing the stream closes the connection, and the devices stop working on the answer.
stream = litellm.completion(
    f"openai/{model}", stream=True, max_tokens=1000, extra_body={"ignore_eos": True}, **fog
)
for number, _ in enumerate(stream):
    if number == 10:
        break
stream.close()
print("Left in the middle.")

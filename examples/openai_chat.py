"""The `openai` package: an answer as it comes, an error, and leaving in the middle."""

import os

import openai

client = openai.OpenAI(
    base_url=os.environ.get("E2LLM_URL", "http://127.0.0.1:8080") + "/v1",
    api_key=os.environ.get("E2LLM_API_KEY", "none"),
)
model = client.models.list().data[0].id

stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "What is 7 plus 5?"}],
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage is not None:
        print(f"\n{chunk.usage.completion_tokens} tokens")

try:
    client.chat.completions.create(
        model="gpt-4", messages=[{"role": "user", "content": "Are you there?"}]
    )
except openai.NotFoundError as error:
    print(f"Refused: {error.code}")

# The end of the block closes the connection, and the devices stop working on the answer.
with client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "What is 7 plus 5?"}],
    stream=True,
    max_tokens=1000,
    extra_body={"ignore_eos": True},
) as stream:
    for number, _ in enumerate(stream):
        if number == 10:
            break
print("Left in the middle.")

"""The `ollama` package: an answer as it comes, an error, and leaving in the middle."""

import os

import ollama

client = ollama.Client(host=os.environ.get("E2LLM_URL", "http://127.0.0.1:8080"))
model = client.list().models[0].model
messages = [{"role": "user", "content": "What is 7 plus 5?"}]

for part in client.chat(model, messages, stream=True):
    print(part.message.content, end="", flush=True)
    if part.done:
        print(f"\n{part.eval_count} tokens")

try:
    client.chat("llama3.2", messages)
except ollama.ResponseError as error:
    print(f"Refused: {error.error}")

# Closing the iterator closes the connection, and the devices stop working on the answer.
stream = client.chat(
    model, messages, stream=True, options={"num_predict": 1000, "temperature": 1.5}
)
for number, _ in enumerate(stream):
    if number == 3:
        break
stream.close()
print("Left in the middle.")

// The `openai` package of npm: an answer as it comes, an error, and leaving in the middle.

import OpenAI from "openai";

const client = new OpenAI({
  baseURL: (process.env.E2LLM_URL ?? "http://127.0.0.1:8080") + "/v1",
  apiKey: process.env.E2LLM_API_KEY ?? "none",
});
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is 7 plus 5?" }];

const answer = await client.chat.completions.create({
  model,
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of answer) {
  process.stdout.write(chunk.choices[0]?.delta.content ?? "");
  if (chunk.usage) console.log(`\n${chunk.usage.completion_tokens} tokens`);
}

try {
  await client.chat.completions.create({ model: "gpt-4", messages });
} catch (error) {
  if (!(error instanceof OpenAI.NotFoundError)) throw error;
  console.log(`Refused: ${error.code}`);
}

// Leaving the loop closes the connection, and the devices stop working on the answer.
const long = await client.chat.completions.create({
  model,
  messages,
  stream: true,
  max_tokens: 1000,
  ignore_eos: true,
});
let number = 0;
for await (const _ of long) {
  number += 1;
  if (number === 10) break;
}
console.log("Left in the middle.");

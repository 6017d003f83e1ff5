// The `openai` package of npm with tools: its runner calls our function and asks again.
//
// It needs a model that calls functions (docs/http-api.md, "Tools"), which the demo model does not.

import OpenAI from "openai";

const client = new OpenAI({
  baseURL: (process.env.E2LLM_URL ?? "http://127.0.0.1:8080") + "/v1",
  apiKey: process.env.E2LLM_API_KEY ?? "none",
});
const model = (await client.models.list()).data[0].id;

const SENSORS = { cellar: 11.5, kitchen: 21.0 };

function temperature({ room }) {
  console.log(`temperature of ${room}`);
  return `${SENSORS[room]} degrees`;
}

const runner = client.chat.completions.runTools({
  model,
  stream: true,
  messages: [{ role: "user", content: "How warm is the cellar?" }],
  tools: [
    {
      type: "function",
      function: {
        name: "temperature",
        description: "Measure how warm a room is, in degrees Celsius.",
        function: temperature,
        parse: JSON.parse,
        parameters: {
          type: "object",
          properties: { room: { type: "string" } },
          required: ["room"],
        },
      },
    },
  ],
});
console.log(await runner.finalContent());

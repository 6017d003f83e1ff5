#!/bin/sh
# The command line program `llm` with tools: the model asks for a function, `llm` calls it.
#
# It needs a model that calls functions (docs/http-api.md, "Tools"), which the demo model does not.
set -eu

LLM_USER_PATH=$(mktemp -d)
export LLM_USER_PATH
trap 'rm -r "$LLM_USER_PATH"' EXIT
cat >"$LLM_USER_PATH/extra-openai-models.yaml" <<YAML
- model_id: fog
  model_name: ${E2LLM_MODEL:?the name of a model that calls functions}
  api_base: ${E2LLM_URL:-http://127.0.0.1:8080}/v1
  api_key_name: fog
  supports_tools: true
YAML

llm prompt --key "${E2LLM_API_KEY:-none}" --model fog --tools-debug --functions '
def temperature(room: str) -> str:
    "Measure how warm a room is, in degrees Celsius."
    return f"{dict(cellar=11.5, kitchen=21.0)[room]} degrees"
' "How warm is the cellar?"

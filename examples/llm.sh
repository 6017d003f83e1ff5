#!/bin/sh
# The command line program `llm`: an answer as it comes, a chat that goes on, an error.
set -eu

# The fog is a model of this file. In everyday life the file stays beside the keys and logs of
# `llm` (`dirname "$(llm logs path)"` says where); here all that goes when the script ends.
LLM_USER_PATH=$(mktemp -d)
export LLM_USER_PATH
trap 'rm -r "$LLM_USER_PATH"' EXIT
cat >"$LLM_USER_PATH/extra-openai-models.yaml" <<YAML
- model_id: fog
  model_name: ${E2LLM_MODEL:-e2llm-demo}
  api_base: ${E2LLM_URL:-http://127.0.0.1:8080}/v1
  api_key_name: fog
- model_id: fog-elsewhere
  model_name: gpt-4
  api_base: ${E2LLM_URL:-http://127.0.0.1:8080}/v1
  api_key_name: fog
YAML
key=${E2LLM_API_KEY:-none}

llm prompt --key "$key" --model fog "What is 7 plus 5?"
llm prompt --key "$key" --continue "And 20 plus 3?"

llm prompt --key "$key" --model fog-elsewhere "Are you there?" || echo "Refused."

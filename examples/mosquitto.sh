#!/bin/sh
# mosquitto_rr, mosquitto_pub and mosquitto_sub: one answer, a stream, an error, a cancelled request.
#
#     E2LLM_BROKER=$(cat ~/.local/state/e2llm/8080/mqtt-url) sh mosquitto.sh
set -eu

user=${E2LLM_BROKER#*://}
user=${user%%:*}
prompts=e2llm/v1/local/prompts/$user
replies=e2llm/v1/local/replies/$user

# Question and answer in one command.
mosquitto_rr -L "$E2LLM_BROKER/$prompts" -e "$replies/whole" -W 60 -m '
    {"request_id": "whole", "messages": [{"role": "user", "content": "What is 7 plus 5?"}]}'

# A stream needs a listener of its own. It subscribes before the question is asked, since replies
# are not retained: with -E it ends when the broker has the subscription, which -c keeps.
session="$user-$$"
mosquitto_sub -i "$session" -c -q 1 -E -L "$E2LLM_BROKER/$replies/#"
heard=$(mktemp)
mosquitto_sub -i "$session" -c -q 1 -L "$E2LLM_BROKER/$replies/#" >"$heard" &
listener=$!

# What waits for the listener goes with its session, when it connects once more without -c.
leave() {
    kill "$listener"
    mosquitto_sub -i "$session" -q 1 -E -L "$E2LLM_BROKER/$replies/none"
    rm "$heard"
}
trap leave EXIT

ask() {
    mosquitto_pub -q 1 -L "$E2LLM_BROKER/$prompts" -m "$1"
}

# The last message of each request has "done".
wait_for() {
    until grep -q "\"request_id\": *\"$1\"" "$heard"; do sleep 0.1; done
}

ask '{"request_id": "stream", "stream": true,
      "messages": [{"role": "user", "content": "What is 7 plus 5?"}]}'
wait_for stream

ask '{"request_id": "wrong", "model": "gpt-4", "prompt": "Are you there?"}'
wait_for wrong

ask '{"request_id": "long", "stream": true, "max_tokens": 1000, "ignore_eos": true,
      "messages": [{"role": "user", "content": "What is 7 plus 5?"}]}'
sleep 1
ask '{"cancel": "long"}'
wait_for long

cat "$heard"

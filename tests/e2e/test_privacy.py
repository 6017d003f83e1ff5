"""What people ask and what they are told appears in no log; the journal has it, for a while."""

import json
import uuid
from typing import Any, cast

import httpx2
import pytest
import redis
from tokenizers import Tokenizer

from broker.topics import PROMPT
from broker.transport import Publication, Received
from fog.config import CLIENT_ID
from fog.model_choice import DEMO_MODEL
from tests.support.bus import wait_for
from tests.support.running_fog import SITE, RunningFog

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.slow]


def test_prompts_and_answers_are_in_no_log_and_in_the_journal_until_it_expires(
    fog: RunningFog,
) -> None:
    marker = f"marker{uuid.uuid4().hex}"
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    marker_ids = tokenizer.encode(marker, add_special_tokens=False).ids
    # An answer that no prompt holds: one letter, again and again.
    [letter] = tokenizer.encode("Q", add_special_tokens=False).ids
    wanted: dict[str, Any] = {"logit_bias": {str(letter): 100}, "max_tokens": 40, "temperature": 0}
    prompt = [5, *marker_ids, 6]
    chat = [{"role": "user", "content": f"Say {marker}"}]

    def post(path: str, body: dict[str, Any] | bytes) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx2.post(f"{fog.url}/v1/{path}", content=content, timeout=30)

    good = [
        post("chat/completions", {"messages": chat, "return_token_ids": True, **wanted}),
        post("chat/completions", {"messages": chat, "stream": True, **wanted}),
        post("completions", {"prompt": prompt, "return_token_ids": True, **wanted}),
    ]
    bad = [
        post("chat/completions", f'{{"messages": "{marker}'.encode()),
        post("chat/completions", {"messages": marker}),
        post("chat/completions", {"messages": [{"role": marker, "content": marker}]}),
        post("chat/completions", {"messages": chat, "stop": [7, marker]}),
        post("chat/completions", {"messages": chat, "model": marker}),
        post("completions", {"prompt": [marker, 7]}),
        post("completions", {"prompt": f"{marker} " * 1000}),
        post("completions", {"prompt": prompt, marker: marker, "n": 1000}),
        httpx2.get(f"{fog.url}/v1/models/{marker}"),
        httpx2.get(f"{fog.url}/{marker}"),
    ]
    with fog.bus(CLIENT_ID) as bus:
        path = PROMPT.path(SITE, client=CLIENT_ID)
        bus.subscribe([(f"e2llm/v1/{SITE}/replies/{CLIENT_ID}/#", PROMPT.qos)])
        for text in (f'{{"messages": "{marker}', json.dumps({"messages": marker})):
            bus.publish(Publication(path, text.encode(), PROMPT.qos))
            wait_for(bus, Received, lambda reply: b'"done": true' in reply.payload)

    assert [response.status_code for response in good] == [200, 200, 200]
    assert good[0].json()["choices"][0]["message"]["content"] == "Q" * 40
    assert good[2].json()["choices"][0]["text"] == "Q" * 40
    assert all(400 <= response.status_code < 500 for response in bad)
    in_json = json.dumps(marker_ids)[1:-1]
    hidden = (marker, "Q" * 20, in_json, in_json.replace(" ", ""))
    for name, text in {**fog.logs(), "up": fog.output.read_text()}.items():
        assert [secret for secret in hidden if secret in text] == [], name

    with redis.Redis.from_url(fog.redis_url, decode_responses=True) as journal:
        check_journal(journal, good[2].json(), prompt, marker, chat)


def check_journal(
    journal: "redis.Redis",
    completion: dict[str, Any],
    prompt: list[int],
    marker: str,
    chat: list[dict[str, str]],
) -> None:
    """The journal has what was asked and answered, with an expiry."""
    key = f"e2llm:{SITE}:request:{completion['id']}-0"
    entry = cast(dict[str, str], journal.hgetall(key))
    assert json.loads(entry["prompt_ids"]) == prompt
    assert json.loads(entry["body"])["prompt"] == [prompt]
    tokens = cast(list[str], journal.lrange(f"{key}:tokens", 0, -1))
    assert [int(token) for token in tokens] == completion["choices"][0]["token_ids"]
    keys = cast(list[str], list(journal.scan_iter(f"e2llm:{SITE}:request:*")))
    bodies = [journal.hget(k, "body") for k in keys if not k.endswith(":tokens")]
    assert sum(marker in str(body) for body in bodies) == 2, "the two chats that were answered"
    assert any(json.loads(str(body)).get("messages") == chat for body in bodies)
    assert all(0 < journal.ttl(key) <= 3600 for key in keys)

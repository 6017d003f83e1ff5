"""The HTTP API over a fake engine: whole answers, streams, states of the fog."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from broker.control import OwnerRules
from gateway.requests import (
    DeadlineExceededError,
    GenerationFailedError,
    NotReadyError,
    QueueFullError,
    Readiness,
    TooLargeError,
)
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api, settings_for
from tests.support.model_folder import BOS, CONTEXT, EOS, ids_of, word_id, write_model_folder
from tests.support.sse import events_of

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "7 + 5?"}]}
PROMPT_TEXT = "<turn>user\n7 + 5?\n<turn>assistant\n"


# --- whole answers -------------------------------------------------------------------------


async def test_a_chat_is_answered(api: Api, engine: FakeEngine) -> None:
    response = await api.post(CHAT, QUESTION)
    body = response.json()
    assert response.status_code == 200
    assert response.headers["x-request-id"].startswith("req_")
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == MODEL
    assert body["system_fingerprint"].startswith("fp_")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "It is 12.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    num_prompt = len(engine.submitted[0].prompt_ids)
    assert body["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": 10,
        "total_tokens": num_prompt + 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_the_template_makes_the_prompt(api: Api, engine: FakeEngine) -> None:
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    await api.post(CHAT, {"messages": messages})
    tokenizer = api.slot.served.tokenizer if api.slot.served else None
    assert tokenizer is not None
    text = "<s><turn>system\nBe short.\n<turn>user\na\nb\n<turn>assistant\n"
    assert engine.submitted[0].prompt_ids == tokenizer.encode(text, add_special_tokens=False)
    assert engine.submitted[0].prompt_ids[0] == BOS


async def test_a_chat_may_use_all_that_the_context_leaves(api: Api, engine: FakeEngine) -> None:
    await api.post(CHAT, QUESTION)
    generation = engine.submitted[0]
    assert generation.max_tokens == CONTEXT - len(generation.prompt_ids)


async def test_the_plan_may_leave_less_than_the_model(api: Api, engine: FakeEngine) -> None:
    engine.largest_tokens = 40
    await api.post(CHAT, QUESTION)
    generation = engine.submitted[0]
    assert generation.max_tokens == 40 - len(generation.prompt_ids)


async def test_a_completion_has_sixteen_tokens_unless_told_otherwise(
    api: Api, engine: FakeEngine
) -> None:
    engine.script = lambda generation: ids_of("x" * 40)
    body = (await api.post(TEXT, {"prompt": "say x"})).json()
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["choices"] == [
        {"index": 0, "text": "x" * 16, "logprobs": None, "finish_reason": "length"}
    ]


async def test_token_ids_go_in_and_out(api: Api, engine: FakeEngine) -> None:
    body = {"prompt": ids_of("7+5="), "return_token_ids": True}
    choice = (await api.post(TEXT, body)).json()["choices"][0]
    assert engine.submitted[0].prompt_ids == tuple(ids_of("7+5="))
    assert choice["prompt_token_ids"] == ids_of("7+5=")
    assert choice["token_ids"] == [*ids_of("It is 12."), EOS]


async def test_a_chat_returns_token_ids_where_vllm_does(api: Api, engine: FakeEngine) -> None:
    body = (await api.post(CHAT, {**QUESTION, "return_token_ids": True})).json()
    assert body["prompt_token_ids"] == list(engine.submitted[0].prompt_ids)
    assert body["choices"][0]["token_ids"] == [*ids_of("It is 12."), EOS]


async def test_several_prompts_and_choices_come_in_order(api: Api, engine: FakeEngine) -> None:
    engine.script = lambda g: [g.prompt_ids[0], g.sampling.choice_index + ids_of("0")[0]]
    body = (await api.post(TEXT, {"prompt": ["a", "b"], "n": 2, "max_tokens": 2})).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == ["a0", "a1", "b0", "b1"]
    # Each prompt counts once, whatever n is.
    assert body["usage"]["prompt_tokens"] == 2
    assert body["usage"]["completion_tokens"] == 8
    assert len({generation.request_id for generation in engine.submitted}) == 4


async def test_choices_differ_in_their_index_and_share_the_seed(
    api: Api, engine: FakeEngine
) -> None:
    await api.post(CHAT, {**QUESTION, "n": 3})
    sampling = [generation.sampling for generation in engine.submitted]
    assert [s.choice_index for s in sampling] == [0, 1, 2]
    assert len({s.seed for s in sampling}) == 1


async def test_a_seed_is_drawn_when_none_is_given(api: Api, engine: FakeEngine) -> None:
    await api.post(CHAT, QUESTION)
    await api.post(CHAT, QUESTION)
    await api.post(CHAT, {**QUESTION, "seed": 11})
    seeds = [generation.sampling.seed for generation in engine.submitted]
    assert seeds[0] != seeds[1]
    assert seeds[2] == 11
    assert all(0 <= seed < 2**63 for seed in seeds)


async def test_parameters_reach_the_engine(api: Api, engine: FakeEngine) -> None:
    parameters = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.1,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "logit_bias": {"5": -100},
        "seed": -1,
        "ignore_eos": True,
        "min_tokens": 2,
        "max_completion_tokens": 7,
        "user": "somebody",
    }
    await api.post(CHAT, {**QUESTION, **parameters, "max_tokens": 5})
    generation = engine.submitted[0]
    sampling = generation.sampling
    assert generation.max_tokens == 7
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 20)
    assert (sampling.min_p, sampling.presence_penalty) == (0.1, 0.25)
    assert (sampling.frequency_penalty, sampling.repetition_penalty) == (-0.5, 1.5)
    assert sampling.logit_bias == {5: -100.0}
    assert sampling.seed == 2**63 - 1
    assert (sampling.ignore_eos, sampling.min_tokens) == (True, 2)
    assert sampling.eos_token_ids == (EOS,)


async def test_without_parameters_openais_defaults_apply(api: Api, engine: FakeEngine) -> None:
    await api.post(CHAT, QUESTION)
    sampling = engine.submitted[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)


@pytest.mark.parametrize(
    ("generation_config", "expected"),
    [
        ({"do_sample": False, "temperature": 0.7}, (0.0, 1.0, 0, 1.0)),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 40},
            (0.6, 0.9, 40, 1.0),
        ),
        ({"repetition_penalty": 1.1, "top_k": None}, (1.0, 1.0, 0, 1.1)),
    ],
)
async def test_the_checkpoints_defaults_go_before_openais(
    engine: FakeEngine,
    tmp_path: Path,
    generation_config: dict[str, Any],
    expected: tuple[float, ...],
) -> None:
    folder = write_model_folder(tmp_path / "model", generation_config=generation_config)
    await Api(engine, settings_for(folder, tmp_path)).post(CHAT, QUESTION)
    s = engine.submitted[0].sampling
    assert (s.temperature, s.top_p, s.top_k, s.repetition_penalty) == expected


async def test_end_tokens_of_the_generation_config_count(
    engine: FakeEngine, tmp_path: Path
) -> None:
    folder = write_model_folder(tmp_path / "model", generation_config={"eos_token_id": [2, 1]})
    await Api(engine, settings_for(folder, tmp_path)).post(CHAT, QUESTION)
    assert engine.submitted[0].sampling.eos_token_ids == (2, 1)


async def test_a_stop_string_ends_the_answer_and_the_work(api: Api, engine: FakeEngine) -> None:
    engine.script = lambda generation: [
        *ids_of("42"),
        *map(word_id, ("<|", "stop", "|>")),
        *ids_of("more"),
    ]
    body = {**QUESTION, "stop": ["<|stop|>"], "return_token_ids": True}
    choice = (await api.post(CHAT, body)).json()["choices"][0]
    assert choice["message"]["content"] == "42"
    assert choice["finish_reason"] == "stop"
    assert len(choice["token_ids"]) == 5
    assert engine.closed
    assert not engine.completed


# --- streams -------------------------------------------------------------------------------


async def test_a_stream_has_role_pieces_finish_reason_and_usage(
    api: Api, engine: FakeEngine
) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = await api.post(CHAT, {**QUESTION, **options})
    *chunks, usage, done = events_of(response.text)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert "content-length" not in response.headers
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(deltas) == "It is 12."
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 10


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_usage_says_how_much_of_a_prompt_was_kept_once_for_all_choices(
    api: Api, engine: FakeEngine, path: str, stream: bool
) -> None:
    engine.cached_tokens = 2
    asked = QUESTION if path == CHAT else {"prompt": ["one two three", "four five six"]}
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}

    response = await api.post(path, {**asked, **options, "n": 2})

    body = events_of(response.text)[-2] if stream else response.json()
    num_prompts = 1 if path == CHAT else 2
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 2 * num_prompts}


async def test_without_the_option_a_stream_has_no_usage(api: Api) -> None:
    chunks = events_of((await api.post(CHAT, {**QUESTION, "stream": True})).text)
    assert all("usage" not in chunk for chunk in chunks[:-1])


async def test_chunks_carry_token_ids_also_where_a_character_is_not_complete(
    api: Api, engine: FakeEngine
) -> None:
    engine.script = lambda generation: [*ids_of("5€"), EOS]
    body = {"prompt": "how much?", "stream": True, "return_token_ids": True}
    chunks = events_of((await api.post(TEXT, body)).text)[:-1]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["text"] for choice in choices] == ["5", "", "", "€", ""]
    assert [i for choice in choices for i in choice["token_ids"]] == [*ids_of("5€"), EOS]
    assert choices[0]["prompt_token_ids"] == list(engine.submitted[0].prompt_ids)
    assert all("prompt_token_ids" not in choice for choice in choices[1:])


async def test_without_token_ids_no_chunk_is_empty(api: Api, engine: FakeEngine) -> None:
    engine.script = lambda generation: [*ids_of("5€"), EOS]
    chunks = events_of((await api.post(TEXT, {"prompt": "x", "stream": True})).text)[:-1]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["5", "€", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_several_choices_stream_side_by_side(api: Api, engine: FakeEngine) -> None:
    engine.script = lambda g: [*ids_of("abc"[g.sampling.choice_index] * 3), EOS]
    response = await api.post(CHAT, {**QUESTION, "n": 3, "stream": True})
    texts = ["", "", ""]
    order = []
    for chunk in events_of(response.text)[:-1]:
        choice = chunk["choices"][0]
        order.append(choice["index"])
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["aaa", "bbb", "ccc"]
    assert order != sorted(order)


async def test_a_silent_stream_is_kept_alive(
    engine: FakeEngine, folder: Path, tmp_path: Path
) -> None:
    api = Api(engine, settings_for(folder, tmp_path, keep_alive_seconds=0.02))
    engine.hold_after = 0
    comments = asyncio.Event()
    received: list[bytes] = []
    body = json.dumps({**QUESTION, "stream": True}).encode()

    async def send(message: Any) -> None:
        received.append(message.get("body", b""))
        if received.count(b": keep-alive\n\n") >= 2:
            comments.set()

    task = asyncio.create_task(api.app(*asgi_call(CHAT, body), send))
    await asyncio.wait_for(comments.wait(), 10)
    engine.go_on.set()
    await asyncio.wait_for(task, 10)
    assert b"data: [DONE]\n\n" in received


def asgi_call(path: str, body: bytes) -> tuple[dict[str, Any], Any]:
    """Return scope and receive of a client that stays until it is answered."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json")],
        "server": ("gateway.test", 80),
        "client": ("client.test", 1),
    }
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        return await asyncio.get_running_loop().create_future()

    return scope, receive


# --- errors of the engine ------------------------------------------------------------------

ENGINE_ERRORS = [
    (QueueFullError("256 requests wait", 7), 429, "queue_full", None, "7"),
    (NotReadyError("no plan is active", 3), 503, "not_ready", None, "3"),
    (TooLargeError("never fits", 48), 400, "context_length_exceeded", "messages", None),
    (DeadlineExceededError("30 s have passed"), 504, "deadline_exceeded", None, None),
    (GenerationFailedError("a stage failed"), 500, "generation_failed", None, None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status", "code", "param", "retry_after"), ENGINE_ERRORS)
async def test_an_error_before_the_first_token_is_an_http_error(
    api: Api,
    engine: FakeEngine,
    error: Exception,
    status: int,
    code: str,
    param: str | None,
    retry_after: str | None,
    stream: bool,
) -> None:
    engine.error = error
    response = await api.post(CHAT, {**QUESTION, "stream": stream})
    found = response.json()["error"]
    assert response.status_code == status
    assert (found["code"], found["param"]) == (code, param)
    assert str(error) in found["message"]
    assert response.headers.get("retry-after") == retry_after
    assert engine.closed


async def test_a_request_that_can_never_fit_is_told_the_largest_that_does(
    api: Api, engine: FakeEngine
) -> None:
    engine.error = TooLargeError("no replica has room for it", 48)
    error = (await api.post(CHAT, QUESTION)).json()["error"]
    assert "48" in error["message"]


async def test_an_error_within_a_stream_is_its_last_event(api: Api, engine: FakeEngine) -> None:
    engine.error = GenerationFailedError("a stage failed")
    engine.error_at = 3
    response = await api.post(CHAT, {**QUESTION, "stream": True})
    *chunks, last = events_of(response.text)
    assert response.status_code == 200
    assert len(chunks) == 4
    assert last["error"]["code"] == "generation_failed"


async def test_one_failed_choice_ends_the_others(api: Api, engine: FakeEngine) -> None:
    engine.error = GenerationFailedError("a stage failed")
    engine.error_at = 3
    response = await api.post(CHAT, {**QUESTION, "n": 3})
    assert response.status_code == 500
    assert len(engine.closed) == 3
    assert not engine.completed


async def test_a_bug_is_a_plain_internal_error(api: Api, engine: FakeEngine) -> None:
    engine.error = RuntimeError("SECRET")
    response = await api.post(CHAT, QUESTION)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "SECRET" not in response.text


# --- models and state ----------------------------------------------------------------------


async def test_the_model_is_listed(api: Api) -> None:
    body = (await api.get("/v1/models")).json()
    assert [model["id"] for model in body["data"]] == [MODEL]
    assert body["data"][0]["max_model_len"] == CONTEXT
    assert (await api.get(f"/v1/models/{MODEL}")).json() == body["data"][0]


async def test_another_model_is_not_found(api: Api) -> None:
    response = await api.get("/v1/models/gpt-4")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_the_fog_is_shown(api: Api) -> None:
    assert (await api.get("/fog/plan")).json()["version"] == 3
    assert (await api.get("/fog/plans")).json() == [{"version": 3, "outcome": "adopted"}]
    assert (await api.get("/fog/devices")).json() == [{"id": "pi", "state": "ready"}]
    assert (await api.get("/healthz")).status_code == 200
    assert "/readyz" in (await api.get("/")).json()["links"]


async def test_ready_means_that_the_engine_is(api: Api, engine: FakeEngine) -> None:
    assert (await api.get("/readyz")).status_code == 200
    engine.ready = Readiness(False, "nodes load", 0.25, {"plan": 2})
    response = await api.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {
        "ready": False,
        "reason": "nodes load",
        "progress": 0.25,
        "details": {"plan": 2},
    }


async def test_until_the_model_is_prepared_nothing_is_ready(
    engine: FakeEngine, folder: Path, tmp_path: Path
) -> None:
    api = Api(engine, settings_for(folder, tmp_path), prepared=False)
    api.slot.report("downloading model owner/name", 0.5)
    ready = await api.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["reason"] == "downloading model owner/name"
    assert ready.json()["progress"] == 0.5
    response = await api.post(CHAT, QUESTION)
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert "downloading" in response.json()["error"]["message"]
    assert (await api.get("/v1/models")).json()["data"] == []
    assert (await api.get("/healthz")).status_code == 200


async def test_the_fingerprint_names_model_formats_and_software(
    api: Api, engine: FakeEngine, folder: Path, tmp_path: Path
) -> None:
    other = Api(engine, settings_for(folder, tmp_path, weights="bfloat16"))
    again = Api(engine, settings_for(folder, tmp_path))
    found = [
        (await one.post(CHAT, QUESTION)).json()["system_fingerprint"] for one in (api, again, other)
    ]
    assert found[0] == found[1] != found[2]


async def test_the_fingerprint_names_how_the_devices_of_the_plan_compute(
    api: Api, engine: FakeEngine
) -> None:
    found = []
    for computing in (("x86_64 AVX2",), ("x86_64 AVX512",), ("x86_64 AVX2", "x86_64 AVX512")):
        engine.computing = computing
        found.append((await api.post(CHAT, QUESTION)).json()["system_fingerprint"])
    assert len(set(found)) == 3
    assert [one.endswith("_mixed") for one in found] == [False, False, True]


async def test_the_fingerprint_says_in_clear_that_kv_travels_in_whole_numbers(
    engine: FakeEngine, folder: Path, tmp_path: Path
) -> None:
    api = Api(engine, settings_for(folder, tmp_path, kv_transfer="int8"))
    body = (await api.post(CHAT, QUESTION)).json()
    assert body["system_fingerprint"].endswith("_kv-int8")


async def test_a_base_model_has_completions_but_no_chat(engine: FakeEngine, tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model", template=None)
    api = Api(engine, settings_for(folder, tmp_path))
    response = await api.post(CHAT, QUESTION)
    assert response.status_code == 400
    assert "/v1/completions" in response.json()["error"]["message"]
    assert (await api.post(TEXT, {"prompt": "x"})).status_code == 200


async def test_no_log_at_default_level_holds_a_prompt(
    api: Api, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    marked = {"messages": [{"role": "user", "content": "MARKER"}]}
    await api.post(CHAT, marked)
    await api.post(CHAT, {**marked, "n": "MARKER"})
    engine.error = RuntimeError("bug")
    await api.post(CHAT, marked)
    assert "MARKER" not in caplog.text


async def test_the_log_at_default_level_has_a_line_for_each_request_that_was_let_in_and_no_other(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    whole = (await api.post(CHAT, {**QUESTION, "n": 3})).json()
    stream = events_of((await api.post(CHAT, {**QUESTION, "stream": True})).text)
    await api.post(CHAT, {**QUESTION, "n": "two"})
    await api.post(CHAT, {**QUESTION, "model": "gpt-9"})
    await api.post("/v1/nowhere", {})
    await api.get("/v1/models")

    # What the client in this process says of itself is not the gateway's.
    said = [line for line in caplog.records if line.name.startswith("gateway")]
    assert [line.getMessage() for line in said] == [
        f"request {whole['id']} finished",
        f"request {stream[0]['id']} finished",
    ]


# --- owners --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "placement"), [("cordon", "cordoned"), ("drain", "draining"), ("uncordon", "open")]
)
async def test_a_device_is_cordoned_drained_and_used_again(
    api: Api, engine: FakeEngine, verb: str, placement: str
) -> None:
    response = await api.post(f"/fog/devices/pi/{verb}", {})
    assert response.status_code == 200
    assert (response.json()["id"], response.json()["placement"]) == ("pi", placement)
    assert engine.controls["pi"].placement == placement
    assert engine.controls["pi"].at > 1.7e9


@pytest.mark.parametrize("path", ["/fog/devices/pi/explode", "/fog/devices/toaster/drain"])
async def test_an_unknown_wish_or_device_is_not_found(api: Api, path: str) -> None:
    assert (await api.post(path, {})).status_code == 404


async def test_rules_of_an_owner_are_set_and_taken_back(api: Api, engine: FakeEngine) -> None:
    async with api.client() as client:
        path = "/fog/devices/pi/owner"
        body = {"text": False, "phases": ["decode"], "layers": [0, 2]}
        assert (await client.put(path, json=body)).status_code == 200
        rules = OwnerRules(text=False, phases=["decode"], layers=(0, 2), utc_offset_seconds=7200)
        assert engine.controls["pi"].rules == rules
        assert (await client.put(path, content=b"null")).json()["rules"] is None


async def test_rules_are_written_over_http_as_everywhere_and_hours_are_the_devices_own(
    api: Api, engine: FakeEngine
) -> None:
    async with api.client() as client:
        path = "/fog/devices/pi/owner"
        await client.put(path, json={"quiet_hours": "22:00-07:00", "layers": "0-3"})
        as_written = engine.controls["pi"].rules
        await client.put(path, json={"quiet_hours": "22:00-07:00", "utc_offset_seconds": 0})
        in_utc = engine.controls["pi"].rules

    assert as_written == OwnerRules(
        quiet_hours="22:00-07:00", utc_offset_seconds=engine.utc_offset_of("pi"), layers=(0, 4)
    )
    assert in_utc == OwnerRules(quiet_hours="22:00-07:00", utc_offset_seconds=0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not the rules of an owner"),
        (b"[]", "not the rules of an owner"),
        (b'{"phases": ["both"]}', "phases must be prefill, decode or both"),
        (b'{"quiet_hours": "late"}', "quiet hours 'late' are not like"),
        (b'{"share": 0.4}', "E2LLM_NODE_SHARE"),
        (b'{"share": "40 %"}', "E2LLM_NODE_SHARE"),
        (b'{"colour": "red"}', "unknown rules: colour"),
        (b'{"layers": [3, 3]}', "layers must be"),
        (b'{"layers": "3-1"}', "layers '3-1' are not a first and a last one"),
        (b'{"utc_offset_seconds": 86400}', "must be less than a day"),
    ],
)
async def test_rules_that_make_no_sense_are_refused(
    api: Api, engine: FakeEngine, body: bytes, reason: str
) -> None:
    async with api.client() as client:
        response = await client.put("/fog/devices/pi/owner", content=body)
    assert response.status_code == 400
    assert reason in response.json()["error"]["message"]
    assert engine.controls["pi"].rules is None

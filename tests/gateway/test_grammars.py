"""`response_format` and calls that must be made: refused, or a grammar that nodes choose by."""

import json
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from gateway.tools.formats import tool_format
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api, settings_for
from tests.support.json_schemas import problem_of, text_of
from tests.support.model_folder import BYTE, CONFIG, EOS, ids_of, write_model_folder
from tests.support.sse import events_of
from tests.support.tool_models import (
    CHAT,
    QUESTION,
    SCHEMA,
    TEMPLATES,
    TOOLS,
    folder_with,
    random_engine,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory.mktemp("grammars"), TEMPLATES["hermes"])


@pytest.fixture
def engine(folder: Path) -> FakeEngine:
    return random_engine(folder)


def schema_format(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


# --- JSON ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_follows_its_schema(api: Api, stream: bool) -> None:
    body = {**QUESTION, "stream": stream, "response_format": schema_format(SCHEMA, strict=True)}
    response = await api.post(CHAT, body)
    if stream:
        choices = [chunk["choices"][0] for chunk in events_of(response.text)[:-1]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        assert choices[-1]["finish_reason"] == "stop"
    else:
        text = response.json()["choices"][0]["message"]["content"]
    assert problem_of(text, SCHEMA) is None


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        (
            CHAT,
            {**QUESTION, "response_format": {"type": "json_object"}},
            lambda found: found["choices"][0]["message"]["content"],
        ),
        (
            "/v1/completions",
            {"prompt": "7+5", "max_tokens": 400, "response_format": schema_format(SCHEMA)},
            lambda found: found["choices"][0]["text"],
        ),
        (
            "/v1/responses",
            {
                "input": "7 + 5?",
                "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
            },
            lambda found: found["output"][0]["content"][0]["text"],
        ),
        (
            "/api/chat",
            {**QUESTION, "model": MODEL, "stream": False, "format": SCHEMA},
            lambda found: found["message"]["content"],
        ),
        (
            "/api/generate",
            {"prompt": "7 + 5?", "model": MODEL, "stream": False, "format": "json"},
            lambda found: found["response"],
        ),
        (
            "/api/generate",
            {"prompt": "7+5", "raw": True, "model": MODEL, "stream": False, "format": SCHEMA},
            lambda found: found["response"],
        ),
    ],
    ids=["object", "completion", "response", "ollama chat", "ollama json", "ollama raw"],
)
async def test_json_is_asked_for_on_every_route(
    api: Api, path: str, body: dict[str, Any], answer: Any
) -> None:
    response = await api.post(path, body)
    assert response.status_code == 200, response.text
    schema = {"type": "object"} if "json_object" in str(body) or "'json'" in str(body) else SCHEMA
    assert problem_of(answer(response.json()), schema) is None


async def test_an_answer_that_is_cut_off_says_so(api: Api) -> None:
    body = {**QUESTION, "max_tokens": 3, "response_format": schema_format(SCHEMA)}
    choice = (await api.post(CHAT, body)).json()["choices"][0]
    assert choice["finish_reason"] == "length"


async def test_text_is_no_constraint(api: Api, engine: FakeEngine) -> None:
    await api.post(CHAT, {**QUESTION, "response_format": {"type": "text"}})
    assert engine.submitted[0].sampling.grammar == ""


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, "'not' is not supported"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems' is not supported"),
        (
            {"type": "object", "properties": {"a": {"if": {}, "then": {}}}},
            "'if', 'then' are not supported",
        ),
        ({"type": "string", "format": "idn-email"}, "idn-email"),
        ({"type": "string", "pattern": "(?=a)b"}, "look"),
        ({"type": "object", "minProperties": 3}, "minProperties"),
        ({"$ref": "https://example.org/schema"}, "https://example.org/schema"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance is not supported"),
        ({"enum": ["x" * 140_000]}, "bytes"),
        ({"type": "integer", "multipleOf": 99_999_989}, "multipleOf"),
        ({"allOf": [{"multipleOf": 9_973}, {"multipleOf": 9_967}]}, "multipleOf"),
        ({"type": "number", "multipleOf": 3.3333333}, "multipleOf"),
    ],
)
async def test_a_schema_that_cannot_be_enforced_is_refused_by_name_before_any_work(
    api: Api, engine: FakeEngine, schema: dict[str, Any], named: str
) -> None:
    response = await api.post(CHAT, {**QUESTION, "response_format": schema_format(schema)})

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "unsupported_schema")
    assert error["param"] == "response_format.json_schema.schema"
    assert named in error["message"]
    assert engine.submitted == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": "json"}, "response_format"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"min_tokens": 3}, "min_tokens"),
    ],
)
async def test_what_does_not_go_together_is_refused(
    api: Api, engine: FakeEngine, change: dict[str, Any], param: str
) -> None:
    body = {**QUESTION, "response_format": {"type": "json_object"}, **change}
    response = await api.post(CHAT, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert engine.submitted == []


async def test_a_tokenizer_that_is_not_known_by_bytes_is_refused(
    tmp_path: Path, engine: FakeEngine
) -> None:
    folder = folder_with(tmp_path / "odd", "")
    settings = settings_for(folder, tmp_path)
    api = Api(engine, settings)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | {"decoder": None}))

    response = await api.post(CHAT, {**QUESTION, "response_format": {"type": "json_object"}})
    assert (response.status_code, response.json()["error"]["code"]) == (
        400,
        "grammar_not_supported",
    )


# --- calls --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("name", ["add", "now", None])
async def test_an_answer_that_must_be_a_call_is_one_with_arguments_of_its_schema(
    tmp_path: Path, family: str, name: str | None
) -> None:
    folder = folder_with(tmp_path / "model", TEMPLATES[family])
    parameters = {each["function"]["name"]: each["function"].get("parameters") for each in TOOLS}
    choice: Any = "required"
    if name is not None:
        choice = {"type": "function", "function": {"name": name}}
    called = set()
    for seed in range(3):
        api = Api(random_engine(folder, seed), settings_for(folder, tmp_path))
        body = {**QUESTION, "tools": TOOLS, "tool_choice": choice}
        answer = (await api.post(CHAT, body)).json()["choices"][0]
        if answer["finish_reason"] == "length":
            continue
        assert answer["finish_reason"] == "tool_calls"
        assert answer["message"]["content"] is None
        calls = [call["function"] for call in answer["message"]["tool_calls"]]
        assert name is None or [call["name"] for call in calls] == [name]
        for call in calls:
            schema = parameters[call["name"]] or {"type": "object"}
            assert problem_of(call["arguments"], schema) is None
            called.add(call["name"])
    assert called
    assert name is not None or len(called) > 1


async def test_a_function_that_must_be_called_has_a_schema_that_can_be_enforced(
    api: Api, engine: FakeEngine
) -> None:
    bad = {"type": "object", "properties": {"a": {"not": {}}}}
    tools = [*TOOLS, {"type": "function", "function": {"name": "bad", "parameters": bad}}]
    refused = await api.post(CHAT, {**QUESTION, "tools": tools, "tool_choice": "required"})
    free = await api.post(CHAT, {**QUESTION, "tools": tools[1:]})

    error = refused.json()["error"]
    assert (error["param"], error["code"]) == (
        "tools[3].function.parameters",
        "unsupported_schema",
    )
    assert "'not' is not supported" in error["message"]
    assert free.status_code == 200
    assert len(engine.submitted) == 1


async def test_whether_a_function_is_strict_is_no_matter_of_the_template(
    tmp_path: Path, engine: FakeEngine
) -> None:
    template = "{{ tools | tojson }}<tool_call>{{ messages[-1].content }}"
    config = {**CONFIG, "max_position_embeddings": 1024}
    folder = write_model_folder(tmp_path / "model", template=template, config=config)
    api = Api(engine, settings_for(folder, tmp_path))
    await api.post(CHAT, {**QUESTION, "tools": TOOLS[:1]})
    assert api.slot.served is not None
    prompt = api.slot.served.tokenizer.decode(engine.submitted[0].prompt_ids)
    assert "strict" not in prompt


def test_a_marker_that_is_one_token_is_one_in_the_grammar(tmp_path: Path) -> None:
    form = tool_format("[TOOL_CALLS][ARGS]")
    assert form is not None
    text = form.grammar(
        [], lambda marker: "<[5]>" if marker == "[ARGS]" else f'"{marker}"', is_named=False
    )
    assert text.splitlines()[0] == 'start: call ("[TOOL_CALLS]" call)*'


async def test_tools_are_called_over_ollamas_routes(api: Api, engine: FakeEngine) -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"sum": 12}}\n</tool_call>'
    engine.script = lambda generation: [*ids_of(f"Well.\n{call}"), EOS]
    body = {**QUESTION, "model": MODEL, "tools": TOOLS}
    whole = (await api.post("/api/chat", {**body, "stream": False})).json()
    lines = [json.loads(line) for line in (await api.post("/api/chat", body)).text.splitlines()]

    expected = [{"function": {"name": "add", "arguments": {"sum": 12}}}]
    assert whole["message"] == {"role": "assistant", "content": "Well.", "tool_calls": expected}
    assert whole["done_reason"] == lines[-1]["done_reason"] == "stop"
    told = [each["message"] for each in lines]
    assert [message["tool_calls"] for message in told if "tool_calls" in message] == [expected]
    assert "".join(message["content"] for message in told) == "Well."


async def test_what_a_tool_said_comes_over_ollamas_route(api: Api, engine: FakeEngine) -> None:
    called = {"function": {"name": "add", "arguments": {"sum": 12}}}
    messages = [
        *QUESTION["messages"],
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "tool_name": "add", "content": "12"},
    ]
    body = {"model": MODEL, "messages": messages, "tools": TOOLS, "stream": False}
    assert (await api.post("/api/chat", body)).status_code == 200
    assert text_of(engine.submitted[0].prompt_ids, BYTE).endswith("12")


async def test_ollama_says_that_the_model_calls_tools(api: Api) -> None:
    shown = (await api.post("/api/show", {"model": MODEL})).json()
    assert shown["capabilities"] == ["completion", "tools"]


class Sum(BaseModel):
    """What a client wants to know."""

    sum: int
    kind: Literal["even", "odd"]
    parts: list[bool] = Field(max_length=2)


async def test_the_openai_client_parses_an_answer_into_a_model_of_its_own(api: Api) -> None:
    async with (
        api.served() as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        chat = await client.chat.completions.parse(
            model=MODEL, messages=[{"role": "user", "content": "7 + 5?"}], response_format=Sum
        )
        response = await client.responses.parse(model=MODEL, input="7 + 5?", text_format=Sum)
    assert isinstance(chat.choices[0].message.parsed, Sum)
    assert isinstance(response.output_parsed, Sum)

"""Answers that may be calls of tools, and else text or JSON: calls are valid whenever made."""

from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from gateway.requests import Generation
from nodes.grammar import Grammar, GrammarError
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api, settings_for
from tests.support.json_schemas import problem_of
from tests.support.model_folder import BOS, BYTE, EOS, TURN, VOCABULARY, ids_of
from tests.support.sse import events_of
from tests.support.tool_models import (
    CHAT,
    QUESTION,
    SCHEMA,
    TEMPLATES,
    TOOLS,
    folder_with,
    make_special,
    random_engine,
    vocabulary_of,
)

MARKERS: Final = {
    "hermes": "<tool_call>",
    "mistral": "[TOOL_CALLS]",
    "mistral args": "[TOOL_CALLS]",
    "granite": "<|tool_call|>",
    "phi 4": "<|tool_call|>",
}
JSON: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": {"type": "object", "required": ["why"]}},
}
ARGUMENTS: dict[str, Any] = {
    "add": SCHEMA,
    "add_all": {"type": "object"},
    "now": {"type": "object"},
}
"""What those of each tool are held to where the model is free to call: one is strict."""
LOOSE: dict[str, Any] = {"type": "object", "properties": {"a": {"not": {}}}}


def model_folder(folder: Path, family: str, *, is_special: bool) -> Path:
    """Write a model of a family, which may write its marker as one token."""
    folder_with(folder, TEMPLATES[family])
    if is_special:
        make_special(folder, MARKERS.get(family, "<|python_tag|>"))
    return folder


async def grammar_of(folder: Path, tmp_path: Path) -> Grammar:
    """Return what an answer is held to that may call `TOOLS`, of which one is strict."""
    engine = FakeEngine(lambda generation: [EOS])
    response = await Api(engine, settings_for(folder, tmp_path)).post(
        CHAT, {**QUESTION, "tools": TOOLS}
    )
    assert response.status_code == 200, response.text
    return vocabulary_of(folder).grammar(engine.submitted[0].sampling.grammar, (EOS,))


def begin_call(family: str, *, is_special: bool) -> list[int]:
    """Return the first tokens of a call, after text where the family's answers may have both."""
    if family == "llama 3":
        return [TURN, *ids_of("{")] if is_special else ids_of('\n{"na')
    text = ids_of("Well.\n")
    return [*text, TURN] if is_special else [*text, *ids_of(MARKERS[family])]


@pytest.mark.parametrize("is_special", [False, True], ids=["bytes", "one token"])
@pytest.mark.parametrize("family", TEMPLATES)
async def test_a_call_that_a_model_chooses_to_make_is_one_of_the_tools_and_strict(
    tmp_path: Path, family: str, is_special: bool
) -> None:
    folder = model_folder(tmp_path / "model", family, is_special=is_special)
    begun = begin_call(family, is_special=is_special)
    called = set()
    for seed in range(4):
        api = Api(random_engine(folder, seed, begun), settings_for(folder, tmp_path))
        answer = (await api.post(CHAT, {**QUESTION, "tools": TOOLS})).json()["choices"][0]
        if answer["finish_reason"] == "length":
            continue
        assert answer["finish_reason"] == "tool_calls"
        assert family == "llama 3" or answer["message"]["content"].startswith("Well.")
        for call in answer["message"]["tool_calls"]:
            name = call["function"]["name"]
            assert problem_of(call["function"]["arguments"], ARGUMENTS[name]) is None
            called.add(name)
    assert "add" in called


@pytest.mark.parametrize("is_special", [False, True], ids=["bytes", "one token"])
@pytest.mark.parametrize("family", TEMPLATES)
async def test_text_is_free_and_what_would_be_read_as_a_call_is_one_of_the_tools(
    tmp_path: Path, family: str, is_special: bool
) -> None:
    """Pieces of markers and of calls, and special tokens, put together at random."""
    folder = model_folder(tmp_path / "model", family, is_special=is_special)
    grammar = await grammar_of(folder, tmp_path)
    marker = MARKERS.get(family, "<|python_tag|>")
    pieces = [
        [BOS], [TURN], ids_of(marker[:1]), ids_of(marker[:5]), ids_of(marker[5:]), ids_of(marker),
        ids_of("\n"), ids_of(" "), ids_of("é"), ids_of("{"), ids_of('{"name": "'), ids_of('["'),
        ids_of('{"name": "subtract", "arguments": {}}'), ids_of('subtract[ARGS]{"a": 1}'),
        ids_of('{"name": "add", "parameters": {"sum": "x"}}'), ids_of('add", "arguments": {'),
    ]  # fmt: skip
    engine = FakeEngine(lambda generation: [EOS])
    api = Api(engine, settings_for(folder, tmp_path))
    rng = np.random.default_rng(3)
    num_texts = 0
    for _ in range(30):
        ids: list[int] = []
        for _ in range(12):
            for token_id in pieces[rng.integers(len(pieces))]:
                if grammar.allowed(ids, VOCABULARY)[token_id]:
                    ids.append(token_id)
        if not grammar.allowed(ids, VOCABULARY)[EOS]:
            continue
        engine.script = partial(written, ids)
        _, calls, _ = told(await api.post(CHAT, {**QUESTION, "tools": TOOLS}), stream=False)
        for name, arguments in calls:
            assert problem_of(arguments, ARGUMENTS[name]) is None, ids
        num_texts += not calls
    assert num_texts > 10


OTHER_OBJECT: Final = '{"name": "subtract", "arguments": {}, "parameters": {}}'


@pytest.mark.parametrize(
    ("family", "is_special", "written"),
    [
        ("hermes", False, ids_of(f"Well.<tool_call>{OTHER_OBJECT}")),
        ("hermes", False, [*ids_of("<tool"), BOS, *ids_of(f"_call>{OTHER_OBJECT}")]),
        ("hermes", True, ids_of(f"<tool_call>{OTHER_OBJECT}")),
        ("hermes", True, [*ids_of("<tool"), BOS, *ids_of(f"_call>{OTHER_OBJECT}")]),
        ("hermes", True, [TURN, *ids_of(OTHER_OBJECT)]),
        ("mistral", False, ids_of(f"[TOOL_CALLS][{OTHER_OBJECT}]")),
        ("mistral args", False, ids_of("[TOOL_CALLS]subtract[ARGS]{}")),
        ("granite", False, ids_of(f"<|tool_call|>[{OTHER_OBJECT}]")),
        ("llama 3", False, ids_of(f" \n{OTHER_OBJECT}")),
        ("llama 3", False, ids_of(f"\n<|python_tag|>{OTHER_OBJECT}")),
        ("llama 3", True, [TURN, *ids_of(OTHER_OBJECT)]),
        ("llama 3", True, ids_of(f"<|python_tag|>{OTHER_OBJECT}")),
    ],
)
async def test_a_call_of_no_tool_cannot_be_written(
    tmp_path: Path, family: str, is_special: bool, written: list[int]
) -> None:
    folder = model_folder(tmp_path / "model", family, is_special=is_special)
    grammar = await grammar_of(folder, tmp_path)
    with pytest.raises(GrammarError):
        grammar.allowed(written, VOCABULARY)


def written(ids: list[int], _: Generation) -> list[int]:
    return [*ids, EOS]


async def test_any_token_may_come_in_text_that_has_no_marker(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "hermes", is_special=True)
    grammar = await grammar_of(folder, tmp_path)
    rng = np.random.default_rng(4)
    texts = [ids_of("".join(chr(rng.integers(32, 600)) for _ in range(20))) for _ in range(5)]
    for ids in ([], *texts):
        assert np.flatnonzero(~grammar.allowed(ids, VOCABULARY)[: BYTE + 128]).tolist() == []
    assert grammar.allowed([*texts[0], BOS], VOCABULARY)[EOS]


async def test_a_strict_function_has_a_schema_that_can_be_enforced(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "hermes", is_special=False)
    engine = random_engine(folder)
    api = Api(engine, settings_for(folder, tmp_path))

    def body(*, strict: bool) -> dict[str, Any]:
        bad = {"name": "bad", "parameters": LOOSE, "strict": strict}
        return {**QUESTION, "tools": [TOOLS[0], {"type": "function", "function": bad}]}

    refused = (await api.post(CHAT, body(strict=True))).json()["error"]
    taken = await api.post(CHAT, body(strict=False))

    assert (refused["param"], refused["code"]) == (
        "tools[1].function.parameters",
        "unsupported_schema",
    )
    assert taken.status_code == 200


@pytest.mark.parametrize("change", [{"ignore_eos": True}, {"min_tokens": 3}])
async def test_strict_tools_are_refused_with_what_hinders_an_end(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = model_folder(tmp_path / "model", "hermes", is_special=False)
    api = Api(random_engine(folder), settings_for(folder, tmp_path))
    response = await api.post(CHAT, {**QUESTION, "tools": TOOLS, **change})
    assert (response.status_code, response.json()["error"]["param"]) == (400, next(iter(change)))


async def test_a_function_over_the_route_of_responses_is_strict_too(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "hermes", is_special=False)
    begun = begin_call("hermes", is_special=False)
    api = Api(random_engine(folder, 3, begun), settings_for(folder, tmp_path))
    tool = {"type": "function", "name": "add", "parameters": SCHEMA, "strict": True}
    found = (await api.post("/v1/responses", {"input": "7 + 5?", "tools": [tool]})).json()
    calls = [item for item in found["output"] if item["type"] == "function_call"]
    assert calls
    assert all(problem_of(call["arguments"], SCHEMA) is None for call in calls)


# --- JSON or calls ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_special", "stream"), [(False, False), (True, True)], ids=["bytes", "one token, streamed"]
)
@pytest.mark.parametrize("family", MARKERS)
async def test_an_answer_with_a_format_and_tools_is_json_or_calls(
    tmp_path: Path, family: str, is_special: bool, stream: bool
) -> None:
    folder = model_folder(tmp_path / "model", family, is_special=is_special)
    body = {**QUESTION, "tools": TOOLS, "response_format": JSON, "stream": stream}
    ends = set()
    for begun in (ids_of("{"), begin_call(family, is_special=is_special)[len("Well.\n") :]):
        for seed in range(2):
            engine = random_engine(folder, seed, begun)
            response = await Api(engine, settings_for(folder, tmp_path)).post(CHAT, body)
            text, calls, reason = told(response, stream=stream)
            if reason == "stop":
                assert problem_of(text, JSON["json_schema"]["schema"]) is None
                assert calls == []
            elif reason == "tool_calls":
                assert text == ""
                for name, arguments in calls:
                    assert problem_of(arguments, ARGUMENTS[name]) is None
            ends.add(reason)
    assert {"stop", "tool_calls"} <= ends


def told(response: Any, *, stream: bool) -> tuple[str, list[tuple[str, str]], str]:
    """Return text, calls and finish reason of an answer."""
    if not stream:
        choice = response.json()["choices"][0]
        calls = [each["function"] for each in choice["message"].get("tool_calls", [])]
        content = choice["message"]["content"] or ""
        return content, [(c["name"], c["arguments"]) for c in calls], choice["finish_reason"]
    choices = [event["choices"][0] for event in events_of(response.text)[:-1]]
    parts = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    names = {part["index"]: part["function"]["name"] for part in parts if "id" in part}
    arguments = {
        index: "".join(p["function"]["arguments"] for p in parts if p["index"] == index)
        for index in names
    }
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    reason = choices[-1]["finish_reason"]
    return text, [(name, arguments[index]) for index, name in names.items()], reason


@pytest.mark.parametrize("stream", [False, True])
async def test_a_marker_within_json_is_text(tmp_path: Path, stream: bool) -> None:
    folder = model_folder(tmp_path / "model", "hermes", is_special=False)
    answer = '{"why": "<tool_call>{\\"name\\": \\"add\\", \\"arguments\\": {}}"}'

    def script(generation: Generation) -> list[int]:
        grammar = vocabulary_of(folder).grammar(generation.sampling.grammar, (EOS,))
        assert grammar.allowed(ids_of(answer), VOCABULARY)[EOS]
        return [*ids_of(answer), EOS]

    api = Api(FakeEngine(script), settings_for(folder, tmp_path))
    body = {**QUESTION, "tools": TOOLS, "response_format": JSON, "stream": stream}
    assert told(await api.post(CHAT, body), stream=stream) == (answer, [], "stop")


async def test_a_format_changes_nothing_where_a_call_must_be_made(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "llama 3", is_special=False)
    api = Api(random_engine(folder, 2), settings_for(folder, tmp_path))
    body = {**QUESTION, "tools": TOOLS, "tool_choice": "required", "response_format": JSON}
    _, calls, reason = told(await api.post(CHAT, body), stream=False)
    assert reason == "tool_calls"
    assert calls


async def test_a_format_beside_calls_that_are_json_themselves_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "llama 3", is_special=False)
    api = Api(random_engine(folder), settings_for(folder, tmp_path))
    response = await api.post(CHAT, {**QUESTION, "tools": TOOLS, "response_format": JSON})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "response_format")
    assert "set tool_choice" in error["message"]

"""gpt-oss: what is shown, what is thought and what is called, in one answer of messages.

`PUBLISHED` are outputs written exactly as the harmony guide shows them
(https://github.com/openai/harmony/blob/main/docs/format.md).
"""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.template import ChatTemplate
from gateway.tools.channels import MARKERS, ChannelReader
from gateway.tools.harmony import Harmony
from nodes.grammar import Grammar, GrammarError, Vocabulary
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api, settings_for
from tests.support.model_folder import CONFIG, VOCABULARY, WORDS, ids_of, write_model_folder
from tests.support.sse import events_of
from tests.support.tool_models import CHAT, QUESTION, SCHEMA, TOOLS

SIMPLE: Final = (
    '<|channel|>analysis<|message|>User asks: "What is 2 + 2?" Simple arithmetic. Provide answer.'
    "<|end|>\n<|start|>assistant<|channel|>final<|message|>2 + 2 = 4.<|return|>"
)
CALLED: Final = (
    "<|channel|>analysis<|message|>Need to use function get_weather.<|end|><|start|>assistant"
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"location":"San Francisco"}<|call|>'
)
PREAMBLE: Final = (
    "<|channel|>analysis<|message|>{long chain of thought}<|end|><|start|>assistant<|channel|>"
    "commentary<|message|>**Action plan**:\n1. Generate an HTML file\n"
    "2. Generate a JavaScript for the Node.js server\n3. Start the server\n---\n"
    "Will start executing the plan step by step<|end|><|start|>assistant<|channel|>"
    "commentary to=functions.generate_file<|constrain|>json<|message|>"
    '{"template": "basic_html", "path": "index.html"}<|call|>'
)
THOUGHT: Final = 'User asks: "What is 2 + 2?" Simple arithmetic. Provide answer.'
PLAN: Final = (
    "**Action plan**:\n1. Generate an HTML file\n2. Generate a JavaScript for the Node.js server\n"
    "3. Start the server\n---\nWill start executing the plan step by step"
)

PIECES: Final = re.compile(rf"{'|'.join(map(re.escape, MARKERS))}|[\s\S]")
"""A marker, which is one token and so never cut, or a character."""

Read = tuple[str, str, list[list[str]]]
WEATHER: Final = [["get_weather", '{"location":"San Francisco"}']]
PUBLISHED: Final[dict[str, tuple[str, Read]]] = {
    "simple": (SIMPLE, ("2 + 2 = 4.", THOUGHT, [])),
    "called": (CALLED, ("", "Need to use function get_weather.", WEATHER)),
    "preamble": (
        PREAMBLE,
        (
            PLAN,
            "{long chain of thought}",
            [["generate_file", '{"template": "basic_html", "path": "index.html"}']],
        ),
    ),
}
# Ways in which answers differ from those.
OTHERS: Final[dict[str, tuple[str, Read]]] = {
    # "The recipient might be defined in the role or channel section of the header."
    "recipient in the role": (
        " to=functions.now<|channel|>commentary json<|message|>{}<|call|>",
        ("", "", [["now", "{}"]]),
    ),
    "two calls": (
        "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|end|>"
        "<|start|>assistant<|channel|>commentary to=now<|message|>{}<|call|>",
        ("", "", [["now", "{}"], ["now", "{}"]]),
    ),
    "two thoughts": (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b"
        "<|end|><|start|>assistant<|channel|>final<|message|>c",
        ("c", "a\nb", []),
    ),
    "a tool that is built in": (
        "<|channel|>analysis to=python code<|message|>1 + 1<|call|>",
        ("", "1 + 1", []),
    ),
    "no end between": (
        "<|channel|>analysis<|message|>a<|channel|>final<|message|>b",
        ("b", "a", []),
    ),
    "no channel": ("<|message|>Hello.<|return|>", ("Hello.", "", [])),
    "no markers": ("to be or not", ("to be or not", "", [])),
    "cut off in a marker's text": ("to", ("to", "", [])),
    "cut off in a header": ("<|channel|>analysis<|message|>a<|end|><|start|>as", ("", "a", [])),
    "cut off in a call": (
        '<|channel|>commentary to=functions.now <|constrain|>json<|message|>{"a',
        ("", "", [["now", '{"a']]),
    ),
}


def read(answer: str, *, whole: bool, takes_calls: bool = True) -> Read:
    """Return what is shown, thought and called; markers are tokens, so they are never cut."""
    reader = ChannelReader(takes_calls=takes_calls)
    parts = [reader.feed_written(answer)] if whole else [
        reader.mark(piece) if piece in MARKERS else reader.feed(piece)
        for piece in PIECES.findall(answer)
    ]  # fmt: skip
    shown, thought, calls = "", "", list[list[str]]()
    for parsed in [*parts, reader.flush()]:
        shown, thought = shown + parsed.text, thought + parsed.reasoning
        for part in parsed.calls:
            if part.name is not None:
                calls.append([part.name, ""])
            calls[part.index][1] += part.arguments
    assert reader.num_calls == len(calls)
    return shown, thought, calls


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "character by character"])
@pytest.mark.parametrize("name", PUBLISHED | OTHERS)
def test_an_answer_is_shown_thought_and_called(name: str, whole: bool) -> None:
    answer, expected = (PUBLISHED | OTHERS)[name]
    assert read(answer, whole=whole) == expected


def test_without_functions_a_call_is_a_thought() -> None:
    shown, thought, calls = read(CALLED, whole=True, takes_calls=False)
    assert (shown, calls) == ("", [])
    assert thought == 'Need to use function get_weather.\n{"location":"San Francisco"}'


def test_text_that_looks_like_a_marker_is_text() -> None:
    reader = ChannelReader(takes_calls=True)
    reader.feed_written("<|channel|>final<|message|>")
    assert reader.feed("say <|end|> twice").text == "say <|end|> twice"


# --- over HTTP ----------------------------------------------------------------------------

# Every marker is one special token, as with gpt-oss: the fixture's words are renamed.
TOKENS: Final = ("<turn>", *WORDS)
ID_OF: Final = {
    marker: 2 if token == "<turn>" else VOCABULARY - len(WORDS) + WORDS.index(token)
    for marker, token in zip(MARKERS, TOKENS, strict=True)
}
ENDS: Final = (ID_OF["<|return|>"], ID_OF["<|call|>"])


def channel_folder(folder: Path) -> Path:
    write_model_folder(
        folder,
        template="{% for m in messages %}{{ m.thinking }}<|message|>{{ m.content }}<|end|>"
        "{% endfor %}<|start|>assistant{% if false %}<|channel|>{% endif %}",
        config={**CONFIG, "max_position_embeddings": 1024},
        generation_config={"eos_token_id": list(ENDS)},
    )
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    written = [token.replace(" ", "\u0120") for token in TOKENS]
    names = dict(zip(written, MARKERS, strict=True))
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {names.get(token, token): i for token, i in vocabulary.items()}
    kind = content["added_tokens"][0]
    kept = [token for token in content["added_tokens"] if token["content"] != "<turn>"]
    added = [{**kind, "id": token_id, "content": marker} for marker, token_id in ID_OF.items()]
    content["added_tokens"] = kept + sorted(added, key=lambda token: token["id"])
    path.write_text(json.dumps(content))
    return folder


def tokens_of(answer: str) -> list[int]:
    """Return an answer as a model writes it: a marker is one token, all else is bytes."""
    pieces = PIECES.findall(answer)
    return [i for piece in pieces for i in ([ID_OF[piece]] if piece in ID_OF else ids_of(piece))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return channel_folder(tmp_path_factory.mktemp("channels"))


def api_that_says(folder: Path, state: Path, answer: str) -> tuple[Api, FakeEngine]:
    engine = FakeEngine(lambda generation: tokens_of(answer))
    return Api(engine, settings_for(folder, state)), engine


WEATHER_TOOL: Final = {"type": "function", "function": {"name": "get_weather"}}


async def test_a_plain_chat_shows_the_final_channel(folder: Path, tmp_path: Path) -> None:
    api, _ = api_that_says(folder, tmp_path, SIMPLE)

    choice = (await api.post(CHAT, QUESTION)).json()["choices"][0]

    assert choice["message"]["content"] == "2 + 2 = 4."
    assert choice["message"]["reasoning_content"] == THOUGHT
    assert choice["finish_reason"] == "stop"


async def test_a_stream_tells_thoughts_apart_from_what_is_shown(
    folder: Path, tmp_path: Path
) -> None:
    api, _ = api_that_says(folder, tmp_path, SIMPLE)

    response = await api.post(CHAT, {**QUESTION, "stream": True})

    deltas = [event["choices"][0]["delta"] for event in events_of(response.text)[:-1]]
    thoughts = "".join(delta.get("reasoning_content", "") for delta in deltas)
    shown = "".join(delta.get("content", "") for delta in deltas)
    assert (thoughts, shown) == (THOUGHT, "2 + 2 = 4.")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_is_told_with_its_arguments(
    folder: Path, tmp_path: Path, stream: bool
) -> None:
    api, _ = api_that_says(folder, tmp_path, CALLED)

    response = await api.post(CHAT, {**QUESTION, "tools": [WEATHER_TOOL], "stream": stream})

    if stream:
        choices = [event["choices"][0] for event in events_of(response.text)[:-1]]
        parts = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
        name = parts[0]["function"]["name"]
        arguments = "".join(part["function"]["arguments"] for part in parts)
        assert len(parts) > 10
        reason = choices[-1]["finish_reason"]
    else:
        [choice] = response.json()["choices"]
        [call] = choice["message"]["tool_calls"]
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        reason = choice["finish_reason"]
        assert choice["message"]["content"] is None
    assert (name, arguments, reason) == (*WEATHER[0], "tool_calls")


async def test_a_stop_string_ends_what_is_shown_and_no_thought(
    folder: Path, tmp_path: Path
) -> None:
    api, _ = api_that_says(folder, tmp_path, SIMPLE)
    body = {**QUESTION, "stop": ["2 =", "assistant", "Simple"]}

    message = (await api.post(CHAT, body)).json()["choices"][0]["message"]

    assert (message["content"], message["reasoning_content"]) == ("2 + ", THOUGHT)


async def test_responses_leave_thoughts_out_and_count_them(folder: Path, tmp_path: Path) -> None:
    api, _ = api_that_says(folder, tmp_path, SIMPLE)

    found = (await api.post("/v1/responses", {"input": "2 + 2?"})).json()

    [item] = found["output"]
    assert item["content"][0]["text"] == "2 + 2 = 4."
    assert found["usage"]["output_tokens_details"]["reasoning_tokens"] == len(THOUGHT)


@pytest.mark.parametrize(
    ("path", "asked"), [("/api/chat", QUESTION), ("/api/generate", {"prompt": "2 + 2?"})]
)
async def test_ollama_s_clients_get_thoughts_as_thinking(
    folder: Path, tmp_path: Path, path: str, asked: dict[str, Any]
) -> None:
    api, _ = api_that_says(folder, tmp_path, SIMPLE)
    assert api.slot.served is not None
    body = {"model": api.slot.served.name, **asked}

    whole = (await api.post(path, {**body, "stream": False})).json()
    lines = [json.loads(line) for line in (await api.post(path, body)).text.splitlines()]

    found = whole.get("message", whole)
    assert found["thinking"] == THOUGHT
    assert (found.get("content") or found.get("response")) == "2 + 2 = 4."
    parts = [line.get("message", line).get("thinking") or "" for line in lines]
    assert "".join(parts) == THOUGHT


# --- held to a grammar --------------------------------------------------------------------


async def grammar_of(folder: Path, state: Path, change: dict[str, Any]) -> Grammar:
    api, engine = api_that_says(folder, state, SIMPLE)
    response = await api.post(CHAT, {**QUESTION, **change})
    assert response.status_code == 200, response.text
    vocabulary = Vocabulary((folder / "tokenizer.json").read_bytes(), ENDS)
    return vocabulary.grammar(engine.submitted[0].sampling.grammar, ENDS)


def is_whole(grammar: Grammar, answer: str) -> bool:
    """Whether an answer may be written, and may end there."""
    try:
        return bool(grammar.allowed(tokens_of(answer), VOCABULARY)[ENDS[0]])
    except GrammarError:
        return False


NEXT: Final = "<|end|><|start|>assistant"
THINKS: Final = f"<|channel|>analysis<|message|>7 < 8, so add.{NEXT}"
TELLS: Final = f"<|channel|>commentary<|message|>I add.{NEXT}"
SUM: Final = '{"sum": 12}'


def call_of(name: str, arguments: str) -> str:
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}"


@pytest.mark.parametrize(
    ("answer", "is_allowed"),
    [
        ("<|channel|>final<|message|>12", True),
        (f"{THINKS}<|channel|>final<|message|>12", True),
        (
            TELLS + call_of("add", SUM),
            True,
        ),
        (call_of("add", SUM), True),
        (call_of("now", '{"any": 1}'), True),
        (call_of("add", '{"sum": "x"}'), False),
        (call_of("subtract", "{}"), False),
        ("<|channel|>analysis<|message|>only", False),
        ("12", False),
    ],
)
async def test_a_strict_call_is_one_of_the_functions(
    folder: Path, tmp_path: Path, answer: str, is_allowed: bool
) -> None:
    grammar = await grammar_of(folder, tmp_path, {"tools": TOOLS})
    assert is_whole(grammar, answer) == is_allowed


@pytest.mark.parametrize(
    ("answer", "is_allowed"),
    [
        (f"<|channel|>final<|message|>{SUM}", True),
        (f"{THINKS}<|channel|>final<|message|>{SUM}", True),
        ("<|channel|>final<|message|>12", False),
        (
            f"{TELLS}<|channel|>final<|message|>{SUM}",
            False,
        ),
        (SUM, False),
    ],
)
async def test_a_format_holds_what_is_shown_and_no_thought(
    folder: Path, tmp_path: Path, answer: str, is_allowed: bool
) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}
    grammar = await grammar_of(folder, tmp_path, {"response_format": wanted})
    assert is_whole(grammar, answer) == is_allowed


@pytest.mark.parametrize(
    ("choice", "written"),
    [
        ("required", f"add <|constrain|>json<|message|>{SUM}<|call|>"),
        ({"type": "function", "function": {"name": "add"}}, f"{SUM}<|call|>"),
    ],
)
async def test_an_answer_that_must_be_a_call_goes_on_behind_its_opening(
    folder: Path, tmp_path: Path, choice: Any, written: str
) -> None:
    api, engine = api_that_says(folder, tmp_path, written)

    body = {**QUESTION, "tools": TOOLS, "tool_choice": choice}
    [answer] = (await api.post(CHAT, body)).json()["choices"]

    [call] = answer["message"]["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": SUM}
    vocabulary = Vocabulary((folder / "tokenizer.json").read_bytes(), ENDS)
    grammar = vocabulary.grammar(engine.submitted[0].sampling.grammar, ENDS)
    assert is_whole(grammar, written.removesuffix("<|call|>"))
    assert not is_whole(grammar, written.replace("12", '"x"').removesuffix("<|call|>"))


async def test_a_tokenizer_without_the_markers_is_refused_where_an_answer_must_be_held(
    tmp_path: Path,
) -> None:
    plain = write_model_folder(tmp_path / "model", template="<|channel|>{{ messages[-1].content }}")
    api, engine = api_that_says(plain, tmp_path, "12")

    response = await api.post(CHAT, {**QUESTION, "tools": TOOLS, "tool_choice": "required"})

    assert (response.status_code, response.json()["error"]["code"]) == (
        400,
        "grammar_not_supported",
    )
    assert engine.submitted == []


# --- what goes back -----------------------------------------------------------------------


@pytest.mark.parametrize(("path", "name"), [(CHAT, "reasoning_content"), ("/api/chat", "thinking")])
async def test_thoughts_that_are_sent_back_come_into_the_prompt(
    folder: Path, tmp_path: Path, path: str, name: str
) -> None:
    api, engine = api_that_says(folder, tmp_path, SIMPLE)
    assert api.slot.served is not None
    called = {"function": {"name": "now", "arguments": "{}" if path == CHAT else {}}}
    thought = {"role": "assistant", "content": "", name: "Look.", "tool_calls": [called]}
    messages = [*QUESTION["messages"], thought, {"role": "tool", "content": "noon"}]

    await api.post(path, {"model": api.slot.served.name, "messages": messages, "stream": False})

    prompt = api.slot.served.tokenizer.decode(engine.submitted[0].prompt_ids, keep_special=True)
    assert "7 + 5?<|end|>Look.<|message|><|end|><|message|>noon<|end|>" in prompt


def test_the_template_reads_thoughts_under_its_own_name_and_every_tool_says_what_it_is() -> None:
    template = ChatTemplate(
        "{% for t in tools %}{{ '// ' + t.function.description }}{% endfor %}"
        "{% for m in messages %}[{{ m.thinking }}|{{ m.content }}]{% endfor %}",
        {},
    )
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "7 + 5?"},
        {"role": "assistant", "content": "See.", "reasoning_content": "Add.", "tool_calls": [{}]},
        {"role": "assistant", "content": "12", "reasoning_content": "So."},
    ]

    prompt = template.render(*Harmony().for_template(messages, [WEATHER_TOOL]))

    assert prompt == "// [|7 + 5?][Add.\nSee.|][So.|12]"

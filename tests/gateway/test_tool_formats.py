"""Answers of each family with calls of tools, in pieces of every size: the same calls."""

import json
import random
from dataclasses import dataclass, field

import pytest

from gateway.tools.calls import ToolFormat
from gateway.tools.formats import tool_format
from gateway.tools.granite import Granite
from gateway.tools.harmony import Harmony
from gateway.tools.hermes import Hermes
from gateway.tools.llama3 import Llama3
from gateway.tools.mistral import Mistral
from gateway.tools.mistral_args import MistralArgs
from gateway.tools.phi4 import Phi4
from gateway.tools.smollm3 import SmolLM3


@dataclass
class Read:
    """What a client has after an answer: its text, and names and arguments of its calls."""

    text: str = ""
    calls: list[list[str]] = field(default_factory=list)


def read(form: ToolFormat, pieces: list[str]) -> Read:
    reader, found = form.reader(), Read()
    for parsed in [*(reader.feed(piece) for piece in pieces), reader.flush()]:
        found.text += parsed.text
        for part in parsed.calls:
            if part.name is not None:
                assert part.index == len(found.calls)
                found.calls.append([part.name, ""])
            found.calls[part.index][1] += part.arguments
    assert reader.num_calls == len(found.calls)
    return found


WEATHER = '{"city": "Z\u00fcrich", "days": [1, 2], "note": "a \\"}\\" }"}'
HERMES_ONE = f'<tool_call>\n{{"name": "weather", "arguments": {WEATHER}}}\n</tool_call>'
HERMES_TWO = f'{HERMES_ONE}\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>'
LLAMA = f'{{"name": "weather", "parameters": {WEATHER}}}'
MISTRAL = f'[TOOL_CALLS][{{"name": "weather", "arguments": {WEATHER}}}'
GRANITE = f'[{{"name": "weather", "arguments": {WEATHER}}}]'
CALLS = [["weather", WEATHER], ["now", "{}"]]

ANSWERS: dict[str, tuple[ToolFormat, str, Read]] = {
    "hermes one": (Hermes(), HERMES_ONE, Read("", CALLS[:1])),
    "hermes text before": (Hermes(), f"Let me see.\n\n{HERMES_TWO}\n", Read("Let me see.", CALLS)),
    "hermes text behind": (Hermes(), f"{HERMES_TWO}\n\nWell. So", Read("Well. So", CALLS)),
    "hermes no call": (Hermes(), "1 < 2, and <tool is none. ", Read("1 < 2, and <tool is none. ")),
    "hermes other order": (
        Hermes(),
        '<tool_call>{"arguments": {"a": 1}, "name": "now"}</tool_call>',
        Read("", [["now", '{"a": 1}']]),
    ),
    "hermes broken": (
        Hermes(),
        "<tool_call>nothing</tool_call>",
        Read("<tool_call>nothing</tool_call>"),
    ),
    "hermes cut off": (
        Hermes(),
        '<tool_call>\n{"name": "now", "arguments": {"a": "b',
        Read("", [["now", '{"a": "b']]),
    ),
    "hermes cut off in the name": (
        Hermes(),
        '<tool_call>\n{"name": "no',
        Read('<tool_call>\n{"name": "no'),
    ),
    "llama one": (Llama3(), LLAMA, Read("", CALLS[:1])),
    "llama marked": (Llama3(), f"<|python_tag|>{LLAMA}", Read("", CALLS[:1])),
    "llama two": (Llama3(), LLAMA + '; {"name": "now", "parameters": {}}', Read("", CALLS)),
    "llama text": (Llama3(), 'Use {"name": "x"}.', Read('Use {"name": "x"}.')),
    "llama other object": (Llama3(), '{"answer": 12} yes', Read('{"answer": 12} yes')),
    "mistral one": (Mistral(), MISTRAL + "]", Read("", CALLS[:1])),
    "mistral two": (
        Mistral(),
        MISTRAL + ', {"name": "now", "arguments": {}}]',
        Read("", CALLS),
    ),
    "granite one": (Granite(), f"<|tool_call|>{GRANITE}", Read("", CALLS[:1])),
    # Its templates show what functions return, and it goes on as if it knew that.
    "granite with more than a call has": (
        Granite(),
        '<|tool_call|>[{"name": "now", "arguments": {}, "return": "2022-09-20"}]',
        Read("", [["now", "{}"]]),
    ),
    "granite two": (
        Granite(),
        f'Let me see. <|tool_call|> {GRANITE[:-1]}, {{"name": "now", "arguments": {{}}}}]',
        Read("Let me see.", CALLS),
    ),
    "granite text": (Granite(), "<|tool_call is none", Read("<|tool_call is none")),
    "phi 4 one": (Phi4(), f"<|tool_call|>{GRANITE}<|/tool_call|>", Read("", CALLS[:1])),
    "phi 4 two, text around": (
        Phi4(),
        f"See:<|tool_call|>{GRANITE[:-1]}, "
        '{"name": "now", "arguments": {}}]<|/tool_call|> Done.',
        Read("See:Done.", CALLS),
    ),
    # As llama.cpp's template has the model write them, which some files carry.
    "phi 4 without lists": (
        Phi4(),
        f"<|tool_call|>{GRANITE[1:-1]}<|/tool_call|>"
        '<|tool_call|>{"name": "now", "arguments": {}}<|/tool_call|>',
        Read("", CALLS),
    ),
    "phi 4 unclosed": (Phi4(), f"<|tool_call|>{GRANITE}", Read("", CALLS[:1])),
    "phi 4 text": (Phi4(), "a <|tool|> is none", Read("a <|tool|> is none")),
    "mistral args": (
        MistralArgs(),
        f"Let me see.[TOOL_CALLS]weather[ARGS]{WEATHER}[TOOL_CALLS]now[ARGS]{{}}",
        Read("Let me see.", CALLS),
    ),
    "mistral args with ids": (
        MistralArgs(),
        f"[TOOL_CALLS]weather[CALL_ID]VvvODy9mT[ARGS] {WEATHER}\n"
        "[TOOL_CALLS]now[CALL_ID]b[ARGS]{}",
        Read("", CALLS),
    ),
    "mistral args cut off": (
        MistralArgs(),
        '[TOOL_CALLS]now[ARGS]{"a": "b',
        Read("", [["now", '{"a": "b']]),
    ),
    "mistral args cut off in the name": (
        MistralArgs(),
        "[TOOL_CALLS]no",
        Read("[TOOL_CALLS]no"),
    ),
    "mistral args text": (MistralArgs(), "[TOOL is none [", Read("[TOOL is none [")),
    "mistral text": (Mistral(), "[TOOL is none [", Read("[TOOL is none [")),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_alike_in_pieces_of_every_size(name: str) -> None:
    form, answer, expected = ANSWERS[name]
    rng = random.Random(name)
    assert read(form, [answer]) == expected
    assert read(form, list(answer)) == expected
    for _ in range(100):
        cuts = sorted(rng.sample(range(len(answer) + 1), 5))
        pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
        assert read(form, pieces) == expected


def test_arguments_are_passed_on_before_the_call_is_complete() -> None:
    reader = Hermes().reader()
    reader.feed('<tool_call>\n{"name": "now", "arguments": ')
    assert [part.name for part in reader.feed('{"a"').calls] == ["now", None]
    assert [part.arguments for part in reader.feed(": 1").calls] == [": 1"]


@pytest.mark.parametrize("form", [Hermes(), Llama3(), Mistral(), Granite(), Phi4()])
@pytest.mark.parametrize("name", [None, "weather"])
def test_an_answer_that_must_be_a_call_goes_on_behind_its_opening(
    form: ToolFormat, name: str | None
) -> None:
    key = "parameters" if isinstance(form, Llama3) else "arguments"
    rest = " {}}" if name is not None else f'weather", "{key}": {{}}}}'
    assert read(form, [form.opening(name), rest]).calls == [["weather", "{}"]]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if tools %}<tool_call>{% endif %}", Hermes),
        ("{% for tool in xml_tools %}<tool_call>{% endfor %}", SmolLM3),
        ("[TOOL_CALLS]", Mistral),
        ("[TOOL_CALLS]{{ name }}[ARGS]", MistralArgs),
        ("<|python_tag|>", Llama3),
        ("respond with <|tool_call|> followed by a JSON list", Granite),
        ("<|tool|>{{ message.tools }}<|/tool|>", Phi4),
        ("<|start|>assistant<|channel|>final<|message|>", Harmony),
        ("{{ messages }}", type(None)),
    ],
)
def test_a_template_shows_the_format(template: str, expected: type) -> None:
    assert isinstance(tool_format(template), expected)


def test_ids_of_mistral_are_as_long_as_its_template_wants() -> None:
    assert len(Mistral().call_id("0123456789abcdef")) == 9
    assert json.loads(WEATHER)["days"] == [1, 2]

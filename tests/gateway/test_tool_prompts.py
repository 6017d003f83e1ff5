"""What chat templates get that do not read tools and calls as most templates do."""

import json
from typing import Any, Final

import pytest

from gateway.template import ChatTemplate
from gateway.tools.phi4 import Phi4
from gateway.tools.smollm3 import SmolLM3

TOOLS: Final[list[dict[str, Any]]] = [
    {"type": "function", "function": {"name": "add", "description": "Adds \u00e9."}}
]
FLAT: Final = json.dumps([tool["function"] for tool in TOOLS], ensure_ascii=False)
QUESTION: Final = {"role": "user", "content": "7 + 5?"}
CALL: Final = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "add", "arguments": {"a": 7, "b": 5}},
}
# Reads what the published template of Phi-4-mini reads, in the same places.
PHI: Final = ChatTemplate(
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'system' and m.tools %}<|tool|>{{ m.tools }}<|/tool|>{% endif %}<|end|>"
    "{% endfor %}<|assistant|>",
    {},
)


@pytest.mark.parametrize(
    ("messages", "system"),
    [
        ([QUESTION], "You are a helpful assistant with some tools."),
        ([{"role": "system", "content": "Be brief."}, QUESTION], "Be brief."),
    ],
)
def test_phi_4_reads_tools_in_the_system_message(
    messages: list[dict[str, Any]], system: str
) -> None:
    prompt = PHI.render(*Phi4().for_template(messages, TOOLS))

    assert prompt == (
        f"<|system|>{system}<|tool|>{FLAT}<|/tool|><|end|><|user|>7 + 5?<|end|><|assistant|>"
    )


def test_phi_4_without_tools_gets_messages_as_they_are() -> None:
    assert Phi4().for_template([QUESTION], None) == ([QUESTION], None)


def test_phi_4_reads_its_own_calls_as_it_wrote_them() -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    answered = {"role": "tool", "content": "12", "tool_call_id": "call_1"}

    prompt = PHI.render(*Phi4().for_template([QUESTION, called, answered], None))

    written = '[{"name": "add", "arguments": {"a": 7, "b": 5}}]'
    assert prompt == (
        "<|user|>7 + 5?<|end|>"
        f"<|assistant|><|tool_call|>{written}<|/tool_call|><|end|>"
        "<|tool|>12<|end|><|assistant|>"
    )


def test_smollm3_reads_its_own_calls_as_it_wrote_them() -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}", {})
    called = {"role": "assistant", "content": "See. ", "tool_calls": [CALL, CALL]}

    prompt = template.render(*SmolLM3().for_template([QUESTION, called], None))

    one = '<tool_call>\n{"name": "add", "arguments": {"a": 7, "b": 5}}\n</tool_call>'
    assert prompt == f"[7 + 5?][See. {one}\n{one}]"


def test_smollm3_reads_functions_under_its_own_name_for_tools() -> None:
    template = ChatTemplate("{% if xml_tools %}{{ xml_tools | tojson }}{% endif %}", {})

    assert (template.render([QUESTION], TOOLS), template.render([QUESTION])) == (FLAT, "")

"""Messages of a conversation as chat templates get them."""

from typing import Any

import pytest

from gateway.bodies import check_body
from gateway.messages import Message

PART = {"type": "text", "text": "a"}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 7, "b": 5}'},
}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            {"role": "developer", "content": "Be short."},
            {"role": "system", "content": "Be short."},
        ),
        (
            {"role": "user", "content": [PART, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "a\nb"},
        ),
        (
            {"role": "tool", "content": "12", "tool_call_id": "call_1", "name": "add"},
            {"role": "tool", "content": "12", "tool_call_id": "call_1", "name": "add"},
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        # Templates write the object, so it is no text here.
                        "function": {"name": "add", "arguments": {"a": 7, "b": 5}},
                    }
                ],
            },
        ),
        (
            {"role": "assistant", "content": "Yes.", "refusal": None, "audio": None},
            {"role": "assistant", "content": "Yes."},
        ),
    ],
    ids=["developer", "parts", "tool", "tool calls", "unknown fields"],
)
def test_a_template_gets_what_it_knows(message: dict[str, Any], expected: dict[str, Any]) -> None:
    assert check_body(message, Message).for_template() == expected

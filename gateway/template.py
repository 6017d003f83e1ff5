"""Chat templates: messages to the text of a prompt.

A template is a program that came with a checkpoint, so it runs in jinja2's sandbox. The
surroundings are those that templates are written for: blocks trimmed, ``raise_exception``,
``strftime_now``, ``tojson`` without HTML escapes, and the ``generation`` tag, which marks
the assistant's words for training and does nothing here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class ChatTemplateError(Exception):
    """The checkpoint has no usable template, or it refuses these messages, saying why."""


class _GenerationTag(Extension):
    tags = {"generation"}  # noqa: RUF012  # jinja2's declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled chat template with the checkpoint's special tokens.

    Attributes:
        source: As the checkpoint has it.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ChatTemplateError(f"the chat template is damaged: {error}") from error
        self._special_tokens = dict(special_tokens)

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """Read ``chat_template.jinja`` or the template in ``tokenizer_config.json``.

        Returns:
            None where the checkpoint has none, as base models do.

        Raises:
            ChatTemplateError: There is one, but it cannot be read.
        """
        config = _read_json(folder / "tokenizer_config.json")
        source = _template_source(folder, config)
        if source is None:
            return None
        tokens = {**_read_json(folder / "special_tokens_map.json"), **config}
        texts = {name: _token_text(tokens.get(name)) for name in _SPECIAL_TOKENS}
        return cls(source, {name: text for name, text in texts.items() if text is not None})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the prompt up to where the assistant's answer begins.

        Raises:
            ChatTemplateError: The template refuses the messages, for example their order.
        """
        given = None if tools is None else [dict(tool) for tool in tools]
        try:
            return self._template.render(
                **self._special_tokens,
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                tools=given,
                # SmolLM3's name for them; as its card has it, without what wraps a function.
                xml_tools=None if given is None else [tool["function"] for tool in given],
                documents=None,
            )
        except TemplateError as error:
            raise ChatTemplateError(str(error) or type(error).__name__) from error
        except Exception as error:  # foreign code: whatever it raises is its refusal
            raise ChatTemplateError(f"the chat template failed: {type(error).__name__}") from error


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in source}
        source = named.get("default")
    return source if isinstance(source, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ChatTemplateError(f"{path} is damaged: {error}") from error
    return content if isinstance(content, dict) else {}


def _token_text(token: Any) -> str | None:
    """Return a special token's text; it is stored as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)

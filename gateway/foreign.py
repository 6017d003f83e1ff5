"""Fields of other servers that this one does not carry out: refused by name, or ignored.

A field that would change the answer is refused, unless its value changes nothing. One that
changes nothing is ignored, and so is one that nobody here has heard of, since clients send many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import ApiError

REFUSED: Final[Mapping[str, tuple[Any, ...]]] = {
    # Field: the values with which it changes nothing; null always does.
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "prompt_logprobs": (),
    "best_of": (1,),
    "suffix": ("",),
    "echo": (False,),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "prompt_embeds": (),
}

IGNORED: Final = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "verbosity",
)
"""What common clients send and nothing here looks at; any other unknown field is ignored too."""


def refuse_foreign(fields: Mapping[str, Any]) -> None:
    """Refuse the first field that would change the answer; `ApiError` 400 that names it."""
    for name, value in fields.items():
        neutral = REFUSED.get(name)
        if neutral is not None and value is not None and not _is_one_of(value, neutral):
            raise ApiError(
                400,
                f"{name} is not supported; leave it out",
                param=name,
                code="unsupported_parameter",
            )


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    # 0 == False, and logprobs=0 asks for something that logprobs=false does not.
    return any(type(value) is type(other) and value == other for other in neutral)

"""Log probabilities as clients read them: tokens as text and bytes, in OpenAI's two forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker.events import Logprobs
from gateway.responses import (
    ChatLogprobs,
    CompletionLogprobs,
    TokenLogprob,
    TopLogprob,
)
from gateway.text import Tokenizer


@dataclass(frozen=True, slots=True)
class LikelyToken:
    """A token and its log probability; of a part of a character the text is a replacement."""

    content: bytes
    logprob: float

    @property
    def text(self) -> str:
        """The token's text."""
        return self.content.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class ShownToken:
    """One token of an answer with its alternatives.

    Attributes:
        chosen: The token itself.
        top: The most probable ones at its place, largest first.
        offset: Where it begins in the text of its choice, in characters.
    """

    chosen: LikelyToken
    top: tuple[LikelyToken, ...]
    offset: int


def shown_token(tokenizer: Tokenizer, token_id: int, logprobs: Logprobs, offset: int) -> ShownToken:
    """Return a token of an answer as clients read it."""

    def likely(one: int, logprob: float) -> LikelyToken:
        return LikelyToken(tokenizer.token_bytes(one), logprob)

    top = tuple(likely(one, logprob) for one, logprob in logprobs.top)
    return ShownToken(likely(token_id, logprobs.chosen), top, offset)


def chat_logprobs(tokens: Sequence[ShownToken]) -> ChatLogprobs:
    """Return the ``logprobs`` of a chat's choice, or of a chunk of one."""
    return ChatLogprobs(
        content=[
            TokenLogprob(
                token=each.chosen.text,
                logprob=each.chosen.logprob,
                bytes=list(each.chosen.content),
                top_logprobs=[
                    TopLogprob(token=one.text, logprob=one.logprob, bytes=list(one.content))
                    for one in each.top
                ],
            )
            for each in tokens
        ],
        refusal=None,
    )


def completion_logprobs(tokens: Sequence[ShownToken]) -> CompletionLogprobs:
    """Return the ``logprobs`` of a completion, or of a chunk of one.

    As with OpenAI, the chosen token is among the alternatives also where it is none of the
    most probable ones.
    """
    return CompletionLogprobs(
        tokens=[each.chosen.text for each in tokens],
        token_logprobs=[each.chosen.logprob for each in tokens],
        top_logprobs=[_by_text((*each.top, each.chosen)) for each in tokens],
        text_offset=[each.offset for each in tokens],
    )


def _by_text(tokens: Sequence[LikelyToken]) -> dict[str, float]:
    """Return log probabilities by text; of two tokens with one text the first counts."""
    found: dict[str, float] = {}
    for token in tokens:
        found.setdefault(token.text, token.logprob)
    return found

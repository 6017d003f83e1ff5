"""The bodies of answers, as OpenAI's clients read them.

Fields that are not set are left out; ``token_ids`` and ``prompt_token_ids`` appear where
vLLM has them, when the request says ``return_token_ids``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from gateway.model import ServedModel
from gateway.requests import Generation


class Response(BaseModel):
    """Base of all answers."""

    def json_text(self) -> str:
        """Return the JSON of the fields that were set."""
        return self.model_dump_json(exclude_unset=True)


class PromptDetails(Response):
    """Of a prompt's tokens, those that an earlier prompt had computed."""

    cached_tokens: int


class Usage(Response):
    """Tokens of a request; a prompt counts once, whatever ``n`` is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails

    @classmethod
    def of(
        cls, generations: Sequence[Generation], completion_tokens: int, cached_tokens: int
    ) -> Usage:
        """Return the usage of a request: its choices, and the tokens that they have together."""
        prompt_tokens = sum(
            len(each.prompt_ids) for each in generations if each.sampling.choice_index == 0
        )
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptDetails(cached_tokens=cached_tokens),
        )


class Head(Response):
    """What every answer and every chunk of a stream begins with."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str


class TopLogprob(Response):
    """A token that might have been chosen; ``bytes`` are exact where it is part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of an answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Response):
    """``logprobs`` of a chat's choice."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(Response):
    """``logprobs`` of a completion: four lists of one length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CalledFunction(Response):
    """Which function is called; ``arguments`` is text, a JSON object if the model kept to it."""

    name: str
    arguments: str


class CallOfTool(Response):
    """A call in a message."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class FunctionDelta(Response):
    """What a chunk adds to a called function."""

    name: str | None = None
    arguments: str


class CallDelta(Response):
    """What a chunk adds to a call; id, type and name come with the first one."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatMessage(Response):
    """The assistant's message; there is no content where it only calls tools.

    Attributes:
        reasoning_content: What the model thought before, where its format parts that.
    """

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None = None
    refusal: None = None
    tool_calls: list[CallOfTool] | None = None


class ChatChoice(Response):
    """One whole answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None
    token_ids: list[int] | None = None


class ChatCompletion(Head):
    """Answer of ``POST /v1/chat/completions``."""

    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None


class Delta(Response):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChatChunkChoice(Response):
    """One choice in a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None
    token_ids: list[int] | None = None


class ChatCompletionChunk(Head):
    """One event of a streamed chat completion."""

    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None


class TextChoice(Response):
    """One completion, whole or, in a stream, what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(Head):
    """Answer of ``POST /v1/completions``, and one event of its stream."""

    choices: list[TextChoice]
    usage: Usage | None = None


class ModelCard(Response):
    """A model in ``GET /v1/models``; ``max_model_len`` as in vLLM.

    Attributes:
        revision: Equal revisions are equal models.
        weights, kv_format: Formats in which nodes hold them.
        is_chat: Whether it has a chat template.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    revision: str
    family: str
    weights: str
    kv_format: str
    vocabulary_size: int
    is_chat: bool


class ModelList(Response):
    """Answer of ``GET /v1/models``."""

    object: Literal["list"]
    data: list[ModelCard]


def model_card(model: ServedModel) -> ModelCard:
    """Return what clients are told of a model."""
    manifest = model.manifest
    return ModelCard(
        id=model.name,
        object="model",
        created=model.created,
        owned_by="e2llm",
        max_model_len=model.context_tokens,
        revision=manifest.revision,
        family=str(manifest.config.get("model_type", "")),
        weights=manifest.weights,
        kv_format=manifest.kv_format,
        vocabulary_size=model.config.vocab_size,
        is_chat=model.template is not None,
    )

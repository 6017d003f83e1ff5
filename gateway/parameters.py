"""From a request's fields to what the engine takes: sampling, limits, seeds. Pure.

What a field may be is checked in `gateway.schemas`; here is checked what depends on the
model and on the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from broker.identity import identity
from broker.work import Sampling
from gateway.errors import invalid_value, too_long
from gateway.model import ServedModel
from gateway.requests import Generation
from gateway.schemas import GenerationRequest

# The nucleus always has one token; that is what OpenAI's top_p = 0 asks for.
_SMALLEST_TOP_P: Final = 1e-6

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may ask for.

    Attributes:
        context_tokens: Prompt plus answer; the smaller of the model's and the plan's.
        max_choices: Choices of one HTTP request, each of which is a request to the fog.
        deadline_seconds: Given to every generation; None: never.
    """

    context_tokens: int
    max_choices: int
    deadline_seconds: float | None


def plan_generations(
    request: GenerationRequest,
    prompts: Sequence[tuple[int, ...]],
    model: ServedModel,
    limits: Limits,
    *,
    answer_id: str,
    created: int,
    prompt_param: str,
    default_max_tokens: int | None,
    drawn_seed: int,
    caller: str = "",
    grammar: str = "",
) -> list[Generation]:
    """Return one `Generation` per choice: ``n`` for each prompt, in OpenAI's order.

    Args:
        request: The checked body.
        prompts: Token ids of each prompt.
        model: For defaults, end tokens and the size of the vocabulary.
        limits: What the request may ask for.
        answer_id: The HTTP answer's id; choice ``k`` has the request id ``<id>-<k>``.
        created: UTC seconds of the answer's beginning.
        prompt_param: Field that errors about the prompt name.
        default_max_tokens: Length of an answer when the request gives none; None: all that
            the context leaves.
        drawn_seed: Used when the request gives no seed.
        caller: Who asks.
        grammar: That the answers must follow; "": none.

    Raises:
        ApiError: 400 that names the field and the limit.
    """
    num_choices = request.n or 1
    total = num_choices * len(prompts)
    if total > limits.max_choices:
        param = "n" if num_choices > 1 else prompt_param
        raise invalid_value(
            param,
            f"{param} asks for {total} choices in one request, at most {limits.max_choices}",
        )
    _check_token_ids(request, prompts, model, prompt_param)
    seed = drawn_seed if request.seed is None else request.seed
    body = request.known_fields()
    generations: list[Generation] = []
    for prompt_ids in prompts:
        max_tokens = _max_tokens(
            request, len(prompt_ids), limits.context_tokens, prompt_param, default_max_tokens
        )
        for choice in range(num_choices):
            generations.append(
                Generation(
                    request_id=f"{answer_id}-{len(generations)}",
                    prompt_ids=prompt_ids,
                    max_tokens=max_tokens,
                    sampling=_sampling(request, model, seed, choice, grammar),
                    deadline_seconds=limits.deadline_seconds,
                    body=body,
                    created=created,
                    caller=caller,
                    model=identity(model.manifest),
                )
            )
    return generations


def _sampling(
    request: GenerationRequest, model: ServedModel, seed: int, choice: int, grammar: str
) -> Sampling:
    defaults = model.defaults
    return Sampling(
        temperature=_given(request.temperature, defaults.temperature),
        top_p=max(_given(request.top_p, defaults.top_p), _SMALLEST_TOP_P),
        top_k=max(_given(request.top_k, defaults.top_k), 0),  # -1 is vLLM's "off"
        min_p=_given(request.min_p, defaults.min_p),
        # One range for every client's integers; the noise takes 63 bits.
        seed=seed % 2**63,
        choice_index=choice,
        presence_penalty=_given(request.presence_penalty, 0.0),
        frequency_penalty=_given(request.frequency_penalty, 0.0),
        repetition_penalty=_given(request.repetition_penalty, defaults.repetition_penalty),
        logit_bias=request.logit_bias,
        eos_token_ids=model.eos_token_ids,
        ignore_eos=bool(request.ignore_eos),
        min_tokens=request.min_tokens or 0,
        top_logprobs=request.num_top_logprobs,
        grammar=grammar,
    )


def _max_tokens(
    request: GenerationRequest,
    num_prompt_tokens: int,
    context_tokens: int,
    prompt_param: str,
    default: int | None,
) -> int:
    room = context_tokens - num_prompt_tokens
    if room < 1:
        raise too_long(
            f"the prompt has {num_prompt_tokens} tokens; prompt and answer together may have "
            f"{context_tokens}, so a prompt may have at most {context_tokens - 1}",
            prompt_param,
            context_tokens,
        )
    param, asked = request.answer_limit
    if asked is not None and asked > room:
        raise too_long(
            f"{param} is {asked}, but after a prompt of {num_prompt_tokens} tokens at most "
            f"{room} fit: prompt and answer together may have {context_tokens} tokens",
            param,
            context_tokens,
        )
    limit = asked if asked is not None else min(_given(default, room), room)
    if request.min_tokens is not None and request.min_tokens > limit:
        raise invalid_value(
            "min_tokens", f"min_tokens is {request.min_tokens}, but the answer may have {limit}"
        )
    return limit


def _check_token_ids(
    request: GenerationRequest,
    prompts: Sequence[Sequence[int]],
    model: ServedModel,
    prompt_param: str,
) -> None:
    vocabulary = model.config.vocab_size
    for prompt_ids in prompts:
        if not prompt_ids:
            raise invalid_value(prompt_param, f"{prompt_param} is empty: it has no token")
        if min(prompt_ids) < 0 or max(prompt_ids) >= vocabulary:
            raise invalid_value(
                prompt_param, f"{prompt_param} has a token id that is not in 0..{vocabulary - 1}"
            )
    outside = [token_id for token_id in request.logit_bias if token_id >= vocabulary]
    if outside:
        raise invalid_value(
            "logit_bias",
            f"logit_bias has token id {outside[0]}, which is not in 0..{vocabulary - 1}",
        )


def _given(value: ValueT | None, default: ValueT) -> ValueT:
    return default if value is None else value

"""Which token comes next: a pure function of logits, parameters and the ids so far.

Noise comes from a hash instead of a generator, so nothing has to be kept or sent along: an
answer is the same alone, in a batch, however the model is split, and after a failure. Adding
Gumbel noise to the log-probabilities and taking the largest is an exact draw from them
(Gumbel 1954; "Gumbel-max").

Order of processing, as in vLLM and transformers: what a grammar leaves, logit bias, repetition
penalty (prompt and answer), presence and frequency penalty (answer only), no EOS before
``min_tokens``, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from broker.work import Sampling

Floats = NDArray[np.float64]
Words = NDArray[np.uint64]
Flags = NDArray[np.bool_]

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15


class SamplingError(ValueError):
    """No token can be chosen for this row; the message says why."""


def choose(
    logits: torch.Tensor,
    sampling: Sampling,
    prompt_ids: Sequence[int],
    generated_ids: Sequence[int],
    position: int,
    allowed: Flags | None = None,
) -> int:
    """Return the token id at ``position``; ties go to the lowest id.

    Args:
        logits: (vocab,), any floating dtype.
        sampling: The request's parameters.
        prompt_ids: The request's prompt.
        generated_ids: Its answer so far.
        position: Absolute position of the token, prompt included; part of the noise.
        allowed: (vocab,), the tokens that a grammar leaves; None: all.

    Raises:
        SamplingError: Logits are not numbers, an id is outside the vocabulary, or nothing
            is left to choose from.
    """
    ids, scores = scored(logits, sampling, prompt_ids, generated_ids, position, allowed)
    return int(ids[np.argmax(scores)])


def scored(
    logits: torch.Tensor,
    sampling: Sampling,
    prompt_ids: Sequence[int],
    generated_ids: Sequence[int],
    position: int,
    allowed: Flags | None = None,
) -> tuple[NDArray[np.int64], Floats]:
    """Return the ids that may be chosen, ascending, and their scores: the largest wins.

    Args and errors are those of `choose`.
    """
    values: Floats = logits.detach().to("cpu", torch.float32).numpy().astype(np.float64)
    # Minus infinity is a token that the model rules out.
    if not (values < np.inf).all():
        raise SamplingError("the model's logits are not numbers; its weights may be damaged")
    if allowed is not None:
        values[~allowed] = -np.inf
    _penalise(values, sampling, prompt_ids, generated_ids)
    largest = values.max()
    if not np.isfinite(largest):
        raise SamplingError("the parameters leave no token to choose from")
    if sampling.temperature <= 0:
        return np.arange(len(values)), values
    # Shifted, so that no temperature, however small, makes the largest one infinite.
    with np.errstate(over="ignore"):
        values = (values - largest) / sampling.temperature
    keep = _kept(values, sampling)
    noise = gumbel_noise(sampling.seed, sampling.choice_index, position, keep)
    return keep, values[keep] + noise


def gumbel_noise(
    seed: int, choice_index: int, position: int, token_ids: NDArray[np.int64]
) -> Floats:
    """Return standard Gumbel noise of each token id, in float64.

    The upper 53 bits of `noise_bits` are a uniform number strictly between 0 and 1.
    """
    bits = noise_bits(seed, choice_index, position, token_ids)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: Floats = -np.log(-np.log(uniform))
    return noise


def noise_bits(seed: int, choice_index: int, position: int, token_ids: NDArray[np.int64]) -> Words:
    """Return 64 hashed bits for each token id.

    The state is mixed once with each of seed, choice index and position (all modulo 2^64);
    a token's bits are number ``id`` of the SplitMix64 sequence that starts there (Steele,
    Lea and Flood, OOPSLA 2014).
    """
    state = 0
    for word in (seed, choice_index, position):
        state = _mix((state + _GOLDEN & _MASK) ^ (word & _MASK))
    counters = token_ids.astype(np.uint64) + np.uint64(1)
    z = np.uint64(state) + counters * np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits: Words = z ^ (z >> np.uint64(31))
    return bits


def _mix(z: int) -> int:
    """SplitMix64's output function on one Python integer."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def _penalise(
    values: Floats, sampling: Sampling, prompt_ids: Sequence[int], generated_ids: Sequence[int]
) -> None:
    """Apply in place what depends on the ids so far, up to the temperature."""
    if sampling.logit_bias:
        ids = _checked(list(sampling.logit_bias), len(values), "logit_bias")
        values[ids] += list(sampling.logit_bias.values())
    if sampling.repetition_penalty != 1.0:
        ids = np.unique(_checked([*prompt_ids, *generated_ids], len(values), "the request"))
        seen = values[ids]
        penalty = sampling.repetition_penalty
        values[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
    if (sampling.presence_penalty or sampling.frequency_penalty) and generated_ids:
        ids, counts = np.unique(
            _checked(generated_ids, len(values), "the answer"), return_counts=True
        )
        values[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if len(generated_ids) < sampling.min_tokens and not sampling.ignore_eos:
        # A tokenizer's EOS may lie outside a matrix that it was not made for.
        values[[i for i in sampling.eos_token_ids if 0 <= i < len(values)]] = -np.inf


def _kept(values: Floats, sampling: Sampling) -> NDArray[np.int64]:
    """Return the ids, ascending, that top-k, top-p and min-p leave of ``values``."""
    keep: NDArray[np.int64] = np.flatnonzero(values > -np.inf)
    if 0 < sampling.top_k < len(keep):
        smallest = np.partition(values[keep], -sampling.top_k)[-sampling.top_k]
        keep = keep[values[keep] >= smallest]
    if sampling.top_p < 1.0:
        keep = _nucleus(keep, values[keep], sampling.top_p)
    if sampling.min_p > 0.0:
        limit = values[keep].max() + np.log(sampling.min_p)
        keep = keep[values[keep] >= limit]
    return keep


def _nucleus(ids: NDArray[np.int64], values: Floats, top_p: float) -> NDArray[np.int64]:
    """Return, ascending, the fewest most probable ids that have ``top_p`` together."""
    probabilities: Floats = np.exp(values - values.max())
    probabilities /= probabilities.sum()
    # Sorting a whole vocabulary takes most of a step, and few tokens have nearly all
    # probability: so sort the largest first, all only when they do not suffice.
    for num_largest in (256, 8192, len(ids)):
        if num_largest < len(ids):
            smallest = np.partition(probabilities, -num_largest)[-num_largest]
            chosen = np.flatnonzero(probabilities >= smallest)
        else:
            chosen = np.arange(len(ids))
        # Stable, so of equal probabilities the lowest id comes first.
        order = chosen[np.argsort(-probabilities[chosen], kind="stable")]
        cumulative = np.cumsum(probabilities[order])
        if cumulative[-1] >= top_p:
            break
    num_kept = int(np.searchsorted(cumulative, top_p)) + 1
    return np.sort(ids[order[:num_kept]])


def _checked(ids: Sequence[int], vocab_size: int, where: str) -> NDArray[np.int64]:
    array = np.asarray(ids, dtype=np.int64)
    outside = array[(array < 0) | (array >= vocab_size)]
    if len(outside):
        raise SamplingError(
            f"token id {outside[0]} of {where} is outside the vocabulary of {vocab_size}"
        )
    return array

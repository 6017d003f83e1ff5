"""Log probabilities of tokens, for clients that ask: what the model said, not what was drawn.

They come from the logits alone, before bias, penalties and temperature, so a token's value is
the same whatever the sampling, and after a failure.
"""

from __future__ import annotations

import numpy as np
import torch

from broker.events import Logprobs


def logprobs_of(logits: torch.Tensor, token_id: int, num_top: int) -> Logprobs:
    """Return the log probability of a token, and the ``num_top`` largest.

    Args:
        logits: (vocab,), any floating dtype, without NaN.
        token_id: The chosen token.
        num_top: How many others are told; at most the vocabulary is.
    """
    values = logits.detach().to("cpu", torch.float32).numpy().astype(np.float64)
    shifted = values - values.max()
    found = shifted - np.log(np.exp(shifted).sum())
    num_top = min(max(num_top, 0), len(found))
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        smallest = np.partition(found, -num_top)[-num_top]
        candidates = np.flatnonzero(found >= smallest)
        # Stable, so of equals the lowest id comes first.
        order = candidates[np.argsort(-found[candidates], kind="stable")][:num_top]
        top = tuple((int(i), _finite(found[i])) for i in order)
    return Logprobs(_finite(found[token_id]), top)


def _finite(value: float) -> float:
    """Return a value that JSON has: a token that the model rules out gets -9999, as in vLLM."""
    return float(max(value, -9999.0))

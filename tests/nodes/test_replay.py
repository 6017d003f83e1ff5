"""The replay in float64 agrees with transformers, and tells ties from errors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from broker.work import Sampling
from nodes.replay import Replay
from nodes.sampler import gumbel_noise
from tests.support.checkpoints import write_checkpoint
from tests.support.oracle import Oracle

PROMPT = list(range(5, 45))
ANSWER = [7, 9, 11]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "olmo2"])
def test_gaps_are_those_of_transformers_in_float64(family: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, family)
    expected = Oracle(tmp_path, torch.float64).logits([*PROMPT, *ANSWER])[-1].double()

    replay = Replay(tmp_path, chunk_tokens=16)

    # transformers computes norms in float32 whatever the model is in.
    for one, other in [(3, 4), (10, 200), (77, 78)]:
        gap = replay.gap(PROMPT, ANSWER, Sampling(), one, other)
        assert gap == pytest.approx(float(abs(expected[one] - expected[other])), abs=1e-4)


def test_drawn_tokens_count_with_their_noise_and_excluded_ones_are_far(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama")
    replay = Replay(tmp_path)
    greedy = replay.gap(PROMPT, ANSWER, Sampling(), 3, 4)
    sampling = Sampling(temperature=0.5, seed=9)

    drawn = replay.gap(PROMPT, ANSWER, sampling, 3, 4)
    excluded = replay.gap(PROMPT, ANSWER, Sampling(temperature=0.5, seed=9, top_k=1), 3, 4)

    noise = gumbel_noise(9, 0, len(PROMPT) + len(ANSWER), np.array([3, 4]))
    shift = float(noise[0] - noise[1])
    either = [abs(2 * greedy + shift), abs(-2 * greedy + shift)]
    assert min(abs(drawn - gap) for gap in either) < 1e-6
    assert excluded == float("inf")

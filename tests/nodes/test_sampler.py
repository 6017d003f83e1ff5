import math
import random
from collections import Counter
from typing import Any, Final

import numpy as np
import pytest
import torch

from broker.work import Sampling
from nodes.sampler import SamplingError, choose, gumbel_noise, noise_bits

LOGITS: Final = torch.tensor([1.0, 3.0, 2.0, -1.0, 0.5, 2.5])
SHARES: Final = LOGITS.double().softmax(0).tolist()

VECTORS_ZERO: Final = ["2130748aaac80268", "0cc78fb979ce5090", "ab9aa3dafba6b4ac"]
VECTORS_LARGE: Final = ["d12d6f8679dc16c6", "29bcd7378eff717f"]
NOISE_ZERO: Final = [-0.7143951177675684, -1.097722639506, 0.9163217771211836]


def ids(*token_ids: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(token_ids, dtype=np.int64)


def draw(count: int, logits: torch.Tensor = LOGITS, **parameters: Any) -> Counter[int]:
    """Count the tokens that ``count`` seeds choose at one position."""
    return Counter(
        choose(logits, Sampling(seed=seed, **parameters), (), (), 100) for seed in range(count)
    )


def allowed(logits: torch.Tensor = LOGITS, **parameters: Any) -> set[int]:
    """Return every token that can be chosen: a high temperature makes all near equal."""
    return set(draw(400, logits, **parameters))


# --- noise --------------------------------------------------------------------------------


def test_the_hash_is_splitmix64_of_the_mixed_state() -> None:
    """Computed again from the published algorithm, one integer at a time."""
    mask = (1 << 64) - 1

    def next_of(state: int) -> int:
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    state = 0
    for word in (42, 3, 1000):
        state = next_of((state + 0x9E3779B97F4A7C15 & mask) ^ word)
    expected = [next_of((state + (i + 1) * 0x9E3779B97F4A7C15) & mask) for i in (0, 1, 151935)]
    assert noise_bits(42, 3, 1000, ids(0, 1, 151935)).tolist() == expected


def test_the_noise_has_fixed_test_vectors() -> None:
    """An answer of today must be the answer of every later version."""
    assert [f"{x:016x}" for x in noise_bits(0, 0, 0, ids(0, 1, 2)).tolist()] == VECTORS_ZERO
    assert [f"{x:016x}" for x in noise_bits(2**64 - 1, 1, 4096, ids(7, 151935)).tolist()] == (
        VECTORS_LARGE
    )
    assert gumbel_noise(0, 0, 0, ids(0, 1, 2)) == pytest.approx(NOISE_ZERO, abs=1e-12)


def test_every_part_of_the_key_changes_the_noise() -> None:
    base = noise_bits(1, 2, 3, ids(4)).item()
    others = [
        noise_bits(2, 2, 3, ids(4)).item(),
        noise_bits(1, 3, 3, ids(4)).item(),
        noise_bits(1, 2, 4, ids(4)).item(),
        noise_bits(1, 2, 3, ids(5)).item(),
        noise_bits(2, 1, 3, ids(4)).item(),
        noise_bits(-1, 2, 3, ids(4)).item(),
    ]
    assert len({base, *others}) == 7


def test_the_noise_of_a_token_does_not_depend_on_which_others_are_asked() -> None:
    assert gumbel_noise(5, 0, 9, ids(3, 8))[1] == gumbel_noise(5, 0, 9, ids(8))[0]


def test_the_noise_has_the_mean_and_variance_of_gumbel() -> None:
    noise = gumbel_noise(11, 0, 17, np.arange(200_000))
    assert np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.03)


# --- choice -------------------------------------------------------------------------------


def test_temperature_zero_takes_the_largest_and_of_equals_the_lowest_id() -> None:
    assert choose(LOGITS, Sampling(), (), (), 0) == 1
    assert choose(torch.tensor([1.0, 4.0, 4.0]), Sampling(), (), (), 0) == 1


def test_sampled_frequencies_follow_the_softmax() -> None:
    count = 6000
    drawn = draw(count, temperature=1.0)
    chi_square = sum(
        (drawn[token] - count * share) ** 2 / (count * share) for token, share in enumerate(SHARES)
    )
    # Five degrees of freedom: larger by chance once in 10 000. The seeds are fixed.
    assert chi_square < 25.7


def test_positions_are_independent_draws() -> None:
    count = 6000
    sampling = Sampling(temperature=1.0, seed=5)
    drawn = Counter(choose(LOGITS, sampling, (), (), position) for position in range(count))
    chi_square = sum(
        (drawn[token] - count * share) ** 2 / (count * share) for token, share in enumerate(SHARES)
    )
    assert chi_square < 25.7


def test_temperature_flattens_and_sharpens() -> None:
    hot, cold = draw(1000, temperature=5.0), draw(1000, temperature=0.2)
    assert cold[1] > 900 > 400 > hot[1]


def test_a_tiny_temperature_is_greedy() -> None:
    assert draw(20, temperature=1e-320) == {1: 20}


def test_the_same_parameters_give_the_same_token() -> None:
    sampling = Sampling(temperature=1.0, seed=2**63 + 5, choice_index=1)
    tokens = {choose(LOGITS, sampling, (1, 2), (3,), 77) for _ in range(5)}
    assert len(tokens) == 1


def test_choices_of_one_request_differ() -> None:
    tokens = [
        choose(LOGITS, Sampling(temperature=2.0, seed=1, choice_index=i), (), (), 0)
        for i in range(30)
    ]
    assert len(set(tokens)) > 2


# --- filters ------------------------------------------------------------------------------


def test_top_k_leaves_the_largest_and_ties_of_the_last() -> None:
    assert allowed(temperature=50.0, top_k=3) == {1, 2, 5}
    assert allowed(temperature=50.0, top_k=100) == set(range(6))
    tied = torch.tensor([1.0, 2.0, 2.0, 0.0])
    assert allowed(tied, temperature=50.0, top_k=1) == {1, 2}


def test_top_p_leaves_the_fewest_that_reach_it() -> None:
    logits = torch.tensor([0.1, 0.5, 0.4]).log()
    assert allowed(logits, temperature=1.0, top_p=0.4) == {1}
    assert allowed(logits, temperature=1.0, top_p=0.85) == {1, 2}
    assert allowed(logits, temperature=1.0, top_p=0.95) == {0, 1, 2}
    assert allowed(logits, temperature=1.0, top_p=0.0) == {1}


def test_top_p_counts_what_top_k_left() -> None:
    logits = torch.tensor([0.3, 0.3, 0.2, 0.2]).log() + torch.tensor([0.01, 0, 0, 0])
    assert allowed(logits, temperature=1.0, top_p=0.45) == {0, 1}
    # Of the two that top-k leaves, the first has more than 0.45.
    assert allowed(logits, temperature=1.0, top_p=0.45, top_k=2) == {0}


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_top_p_of_a_large_vocabulary_equals_sorting_all_of_it(spread: float) -> None:
    """Few tokens suffice at a large spread; at a small one all must be sorted."""
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(1)) * spread
    probabilities, order = values.double().softmax(0).sort(descending=True)
    num_kept = int((probabilities.cumsum(0) < 0.9).sum()) + 1
    kept = set(order[:num_kept].tolist())
    drawn = draw(60, values, temperature=1.0, top_p=0.9)
    noise = {seed: gumbel_noise(seed, 0, 100, np.array(sorted(kept))) for seed in range(60)}
    scaled = values.double().numpy()[sorted(kept)]
    expected = Counter(sorted(kept)[int(np.argmax(scaled + noise[s]))] for s in range(60))
    assert drawn == expected


def test_min_p_leaves_what_is_near_the_largest() -> None:
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    assert allowed(logits, temperature=1.0, min_p=0.4) == {0, 1}
    assert allowed(logits, temperature=1.0, min_p=0.6) == {0}


# --- penalties ----------------------------------------------------------------------------


def test_a_bias_is_added_to_the_logit() -> None:
    assert choose(LOGITS, Sampling(logit_bias={3: 4.5}), (), (), 0) == 3
    assert choose(LOGITS, Sampling(logit_bias={1: -100.0}), (), (), 0) == 5


def test_repetition_divides_positive_and_multiplies_negative_logits_once_per_token() -> None:
    sampling = Sampling(repetition_penalty=2.0)
    assert choose(torch.tensor([3.0, 2.0]), sampling, (0, 0, 0), (), 0) == 1
    assert choose(torch.tensor([3.0, 1.0]), sampling, (0, 0, 0), (), 0) == 0
    assert choose(torch.tensor([-1.0, -1.5]), sampling, (), (0,), 0) == 1


def test_presence_counts_once_and_frequency_each_time_of_the_answer_alone() -> None:
    logits = torch.tensor([3.0, 2.0])
    assert choose(logits, Sampling(presence_penalty=0.9), (), (0, 0), 0) == 0
    assert choose(logits, Sampling(frequency_penalty=0.9), (), (0, 0), 0) == 1
    assert choose(logits, Sampling(presence_penalty=1.1), (), (0,), 0) == 1
    assert choose(logits, Sampling(presence_penalty=1.1, frequency_penalty=1.1), (0, 0), (), 0) == 0


def test_the_bias_comes_before_the_penalty() -> None:
    sampling = Sampling(logit_bias={0: 2.0}, repetition_penalty=2.0)
    # (1 + 2) / 2 = 1.5 is larger than 1.4; 1 / 2 + 2 would be larger than 2.
    assert choose(torch.tensor([1.0, 1.4]), sampling, (0,), (), 0) == 0
    assert choose(torch.tensor([1.0, 2.0]), sampling, (0,), (), 0) == 1


def test_no_end_before_min_tokens_unless_ends_are_ignored() -> None:
    sampling = Sampling(eos_token_ids=(1, 10**6), min_tokens=2)
    assert choose(LOGITS, sampling, (), (), 0) == 5
    assert choose(LOGITS, sampling, (), (0,), 0) == 5
    assert choose(LOGITS, sampling, (), (0, 0), 0) == 1
    ignoring = Sampling(eos_token_ids=(1,), min_tokens=2, ignore_eos=True)
    assert choose(LOGITS, ignoring, (), (), 0) == 1


def test_the_choice_depends_on_which_ids_came_and_how_often_not_on_their_order() -> None:
    """So what a stage chooses follows from `open` and the ids alone, also after a failure."""
    rng = random.Random(5)
    logits = torch.randn(40, generator=torch.Generator().manual_seed(2))
    for _ in range(100):
        sampling = Sampling(
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_k=rng.choice([0, 5]),
            top_p=rng.choice([0.8, 1.0]),
            min_p=rng.choice([0.0, 0.05]),
            seed=rng.randrange(2**63),
            presence_penalty=rng.uniform(-2, 2),
            frequency_penalty=rng.uniform(-2, 2),
            repetition_penalty=rng.uniform(0.5, 2),
            logit_bias={rng.randrange(40): rng.uniform(-100, 100) for _ in range(3)},
            eos_token_ids=(1,),
            min_tokens=rng.randrange(12),
        )
        prompt, answer = ([rng.randrange(40) for _ in range(8)] for _ in range(2))
        first = choose(logits, sampling, prompt, answer, 16)
        shuffled = rng.sample(prompt, 8), rng.sample(answer, 8)
        assert choose(logits, sampling, *shuffled, 16) == first


# --- bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_numbers_fail_the_row(value: float) -> None:
    with pytest.raises(SamplingError, match="not numbers"):
        choose(torch.tensor([1.0, value]), Sampling(), (), (), 0)


def test_a_token_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(SamplingError, match="token id 6 of logit_bias"):
        choose(LOGITS, Sampling(logit_bias={6: 1.0}), (), (), 0)
    with pytest.raises(SamplingError, match="token id 9"):
        choose(LOGITS, Sampling(repetition_penalty=1.1), (9,), (), 0)


def test_nothing_left_to_choose_from_is_said() -> None:
    sampling = Sampling(eos_token_ids=(0, 1), min_tokens=1, temperature=1.0)
    with pytest.raises(SamplingError, match="no token to choose"):
        choose(torch.zeros(2), sampling, (), (), 0)


def test_the_given_logits_are_left_alone() -> None:
    logits = LOGITS.clone()
    choose(logits, Sampling(temperature=0.5, logit_bias={0: 3.0}), (), (), 0)
    assert torch.equal(logits, LOGITS)


def test_bfloat16_logits_are_accepted() -> None:
    assert choose(LOGITS.bfloat16(), Sampling(), (), (), 0) == 1

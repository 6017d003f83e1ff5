"""Rotary embeddings: frequencies by their definitions, and positions by themselves."""

import math

import torch

from broker.architecture import Rope
from nodes.rotary import RotaryTable, inverse_frequencies, rotate

CPU = torch.device("cpu")


def test_default_frequencies_fall_by_powers_of_the_base() -> None:
    frequencies = inverse_frequencies(Rope(theta=10000.0), 8)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_linear_scaling_divides_every_frequency() -> None:
    frequencies = inverse_frequencies(Rope(kind="linear", theta=10000.0, factor=4.0), 8)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1, 0.01, 0.001]) / 4)


def test_llama3_scaling_keeps_short_waves_divides_long_ones_and_blends_between() -> None:
    # Wavelengths 6.3, 62.8, 628 and 6283 against a context of 400: kept below 100, divided
    # above 400. With factors 1 and 8 the second lies between 50 and 400.
    rope = Rope("llama3", 10000.0, 8.0, 1.0, 8.0, 400)
    share = (400 / (2 * math.pi * 10) - 1) / (8 - 1)
    blended = (1 - share) * 0.1 / 8 + share * 0.1
    expected = torch.tensor([1.0, blended, 0.01 / 8, 0.001 / 8])
    torch.testing.assert_close(inverse_frequencies(rope, 8), expected)


def test_the_rotation_of_a_position_does_not_depend_on_what_was_asked_before() -> None:
    rope = Rope(theta=1000000.0)
    positions = torch.tensor([3, 511, 512, 1300])
    at_once = RotaryTable(rope, 10, torch.float32, CPU)(positions, 1301)
    stepwise = RotaryTable(rope, 10, torch.float32, CPU)
    stepwise(torch.tensor([0]), 1)
    for i, position in enumerate(positions.tolist()):
        cos, sin = stepwise(torch.tensor([position]), position + 1)
        assert torch.equal(cos[0], at_once[0][i])
        assert torch.equal(sin[0], at_once[1][i])


def test_yarn_keeps_what_turns_often_divides_what_turns_seldom_and_blends_between() -> None:
    # Within 628 positions the four pairs turn 100, 10, 1 and 0.1 times.
    rope = Rope(
        "yarn",
        theta=10000.0,
        factor=8.0,
        original_max_position_embeddings=round(200 * math.pi),
        turns=(1.0, 100.0),
    )
    share = 0.5  # of the second, half-way between the first and the third
    expected = torch.tensor([1.0, 0.1 * (share + (1 - share) / 8), 0.01 / 8, 0.001 / 8])
    torch.testing.assert_close(inverse_frequencies(rope, 8), expected)


def test_longrope_divides_each_frequency_by_its_own_factor() -> None:
    rope = Rope("longrope", theta=10000.0, factors=(1.0, 1.5, 2.0, 5.0))
    expected = torch.tensor([1.0, 0.1 / 1.5, 0.01 / 2, 0.001 / 5])
    torch.testing.assert_close(inverse_frequencies(rope, 8), expected)


def test_dimensions_beyond_the_rotated_share_stay_as_they_are() -> None:
    table = RotaryTable(Rope(share=0.5, amplitude=2.0), 8, torch.float32, CPU)
    x = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    rotated = rotate(x.clone(), table(torch.tensor([0, 1, 5]), 6))
    assert torch.equal(rotated[..., 4:], x[..., 4:])
    # At position 0 nothing turns; the amplitude holds everywhere.
    torch.testing.assert_close(rotated[0, :, :4], 2 * x[0, :, :4])
    torch.testing.assert_close(rotated[..., :4].norm(dim=-1), 2 * x[..., :4].norm(dim=-1))


def test_without_a_rotation_nothing_changes() -> None:
    x = torch.ones(3, 2, 8)
    assert torch.equal(rotate(x.clone(), None), x)

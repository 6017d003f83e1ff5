"""Log probabilities of one row: the model's own, whatever the sampling."""

import math

import pytest
import torch

from nodes.logprobs import logprobs_of


def test_they_are_the_log_softmax_of_the_logits() -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 5
    expected = logits.double().log_softmax(0)

    found = logprobs_of(logits, 17, 20)

    assert found.chosen == pytest.approx(expected[17].item(), abs=1e-12)
    best = expected.topk(20)
    assert [token_id for token_id, _ in found.top] == best.indices.tolist()
    assert [value for _, value in found.top] == pytest.approx(best.values.tolist(), abs=1e-12)


def test_of_equals_the_lowest_ids_come_first() -> None:
    found = logprobs_of(torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]), 0, 4)
    assert [token_id for token_id, _ in found.top] == [1, 2, 4, 0]


@pytest.mark.parametrize(("num_top", "expected"), [(-3, 0), (0, 0), (2, 2), (10**9, 3)])
def test_there_are_never_more_than_the_vocabulary_has(num_top: int, expected: int) -> None:
    assert len(logprobs_of(torch.zeros(3, dtype=torch.bfloat16), 0, num_top).top) == expected


def test_a_token_that_the_model_rules_out_has_a_number_that_json_can_say() -> None:
    found = logprobs_of(torch.tensor([0.0, -math.inf]), 1, 2)
    assert found.chosen == -9999.0
    assert found.top == ((0, 0.0), (1, -9999.0))

"""The benchmark of the engine: what it measures, beside whom, on a checkpoint of a moment."""

from pathlib import Path

import pytest
import torch

from broker.work import RequestKey
from nodes.bench.__main__ import format_error, run, time_rounds
from nodes.bench.ours import OurEngine, token_ids
from nodes.bench.task import BenchRow, BenchTask
from nodes.bench.theirs import TransformersEngine
from tests.support.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m"), "qwen2", dtype=torch.bfloat16)


def task(folder: Path, **changes: object) -> BenchTask:
    values = {
        "shape": "tiny",
        "folder": str(folder),
        "weights": "int8",
        "threads": 1,
        "prompt_tokens": 150,
        "batches": [1, 3],
        "context_tokens": 20,
        "seconds": 0.0,
        "trained_folder": str(folder),
        "trained_texts": [[5, 6, 7], list(range(3, 150))],
    }
    return BenchTask(**{**values, **changes})  # type: ignore[arg-type]


def test_every_phase_is_a_row_with_ratios_to_both_kinds_of_transformers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodes.bench.__main__._BANDWIDTH_ELEMENTS", 1 << 16)
    with torch.inference_mode():
        said = list(run(task(folder)))
    rows = [line.row for line in said if line.row is not None]
    assert [(row.phase, row.batch, row.tokens) for row in rows] == [
        ("prefill", 1, 150),
        ("decode", 1, 20),
        ("decode", 3, 20),
    ]
    for row in rows:
        assert row.tokens_per_second > 0
        assert row.ratio_to_transformers_int8 is not None
        assert row.ratio_to_transformers_float32 is not None
        assert row.share_of_bandwidth_limit > 0
    floors = [line.floor for line in said if line.floor is not None]
    assert [(floor.phase, floor.batch) for floor in floors] == [(r.phase, r.batch) for r in rows]
    assert all(floor.seconds > 0 and floor.share > 0 for floor in floors)
    (memory,) = [line.memory for line in said if line.memory is not None]
    assert memory.peak_bytes > memory.weight_bytes > 0


def test_without_transformers_there_are_rows_without_ratios(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodes.bench.__main__._BANDWIDTH_ELEMENTS", 1 << 16)
    with torch.inference_mode():
        said = list(run(task(folder, with_transformers=False, weights="float32")))
    rows: list[BenchRow] = [line.row for line in said if line.row is not None]
    assert len(rows) == 3
    assert {row.ratio_to_transformers_int8 for row in rows} == {None}


def test_our_engine_and_transformers_are_given_the_same_work(folder: Path) -> None:
    ours = OurEngine(folder, "float32", 1)
    theirs = TransformersEngine(folder, torch.device("cpu"), is_int8=False)
    with torch.inference_mode():
        expected = theirs.prefill(150)()
        assert isinstance(expected, torch.Tensor)
        actual = ours.prefill(150)()
        assert isinstance(actual, torch.Tensor)
    assert torch.allclose(actual[0], expected[0, -1], atol=1e-3)


def test_the_error_of_a_format_is_against_float32_of_the_same_checkpoint(folder: Path) -> None:
    with torch.inference_mode():
        exact, rounded = (
            format_error(task(folder, weights=weights)) for weights in ("float32", "int8")
        )
    assert (exact.logit_error, exact.top1_agreement) == (0.0, 1.0)
    assert 0 < rounded.logit_error < 0.3
    assert rounded.num_positions == 3 + 147


def test_steps_are_timed_in_turn_and_three_times_at_least() -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    rounds = time_rounds(steps, 0.0)
    assert len(rounds) == 3
    assert calls == ["a", "b"] * 4


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_on_another_device_no_tensor_of_the_cpu_takes_part(
    tmp_path: Path, family: str, weights: str
) -> None:
    # The meta device computes nothing, and refuses tensors of another device as a GPU does.
    folder = write_checkpoint(tmp_path, family, dtype=torch.bfloat16)
    engine = OurEngine(folder, weights, 1, torch.device("meta"))
    executor, key = engine.executor, RequestKey("text", 0)
    executor.open(key, 200)
    with torch.inference_mode():
        hidden = executor.prefill(key, executor.embed(token_ids(128, 50)), 0)
        hidden = executor.replay(key, executor.embed([5, 6]), 128)
        hidden = executor.decode([key, key], executor.embed([7, 8]))
        logits = engine.weights.head.logits(hidden)
        engine.products(3, 3)()
    assert logits.device.type == "meta"
    assert logits.shape == (2, executor.config.vocab_size)


def test_made_up_token_ids_are_of_the_vocabulary() -> None:
    assert max(token_ids(1000, 50)) < 50

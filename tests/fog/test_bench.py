"""`e2llm bench engine`: processes, tables and JSON, on a shape of a moment."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fog import bench
from fog.bench import BenchFailedError, BenchOptions, checkpoint_folder, run_bench
from fog.commands import app
from fog.doctor import num_usable_cores
from fog.shapes import shapes
from nodes.bench.task import Said
from tests.fog.test_made_model import SMALL

FIELDS = {
    "shape",
    "weights",
    "phase",
    "batch",
    "tokens",
    "threads",
    "tokens_per_second",
    "ratio_to_transformers_int8",
    "ratio_to_transformers_float32",
    "share_of_bandwidth_limit",
}


def test_more_threads_than_cores_are_refused_before_anything_is_made() -> None:
    result = CliRunner().invoke(app, ["bench", "engine", "--threads", "999999"])
    assert result.exit_code == 2
    assert f"{num_usable_cores()} cores" in result.stderr


@pytest.fixture(autouse=True)
def small_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "shapes", lambda: {"small": SMALL})
    quick = {"batches": [1, 2], "seconds": 0.0, "prompt_tokens": 130}
    monkeypatch.setattr(bench, "_QUICK", quick)
    # Importing it takes longer than all that is measured here; tests/nodes measures with it.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def options(cache: Path, json_target: str | None = None) -> BenchOptions:
    return BenchOptions(
        shapes=["small"],
        weights=["int8"],
        threads=1,
        is_quick=True,
        cache=cache,
        json_target=json_target,
    )


def test_results_are_a_table_or_json_with_the_documented_fields(tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    run_bench(options(tmp_path, str(target)), Console(quiet=True))
    result = json.loads(target.read_text())
    assert [(row["phase"], row["batch"]) for row in result["rows"]] == [
        ("prefill", 1),
        ("decode", 1),
        ("decode", 2),
    ]
    assert all(set(row) >= FIELDS for row in result["rows"])
    assert result["errors"][0]["top1_agreement"] > 0.9
    assert result["loading"][0]["weight_bytes"] > 0


def test_a_user_is_told_what_is_missing_and_where_checkpoints_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = Said(note="int8 kernel onednn-8 is left out: its sums are not exact here")
    monkeypatch.setattr(bench, "_run", lambda task: iter([note]))
    output = StringIO()
    for _ in range(2):
        run_bench(options(tmp_path), Console(file=output, width=1000))
    text = output.getvalue()
    assert text.count("pip install transformers adds them") == 2
    assert text.count(f"are made in {tmp_path}") == 1, "the second time all are there"
    assert "small int8: int8 kernel onednn-8 is left out" in text


def test_a_checkpoint_is_made_once_and_again_when_it_was_interrupted(tmp_path: Path) -> None:
    folder = checkpoint_folder("small", tmp_path)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert checkpoint_folder("small", tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    (folder / "config.json").unlink()
    checkpoint_folder("small", tmp_path)
    assert (folder / "model.safetensors").stat().st_mtime_ns > written


def test_a_process_that_ends_early_is_reported_with_its_last_words(tmp_path: Path) -> None:
    folder = checkpoint_folder("small", tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BenchFailedError, match=r"small in int8: KeyError.*embed_tokens"):
        run_bench(options(tmp_path), Console(quiet=True))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["--shape", "qwen2.5"], "qwen2.5-0.5b"), (["--weights", "int9"], "int8")],
)
def test_an_unknown_shape_or_format_is_refused(arguments: list[str], hint: str) -> None:
    result = CliRunner().invoke(app, ["bench", "engine", *arguments])
    assert result.exit_code == 2
    assert hint in result.output


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "shapes", shapes)
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "shapes"

    result = CliRunner().invoke(app, ["bench", "engine", "--quick", "--models", str(place)])

    assert result.exit_code == 1
    assert f"cannot write {place}" in result.stderr
    assert "Errno" not in result.stderr

"""A node measures itself, once per host and shape of model."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from broker.architecture import parse_config
from broker.control import DecodeTime, LayerTimes, PrefillTime
from nodes.calibration import Calibration
from nodes.measure import measure
from nodes.profiles import MeasurementCache, calibration_key
from tests.support.checkpoints import FAMILIES

TINY = parse_config(FAMILIES["qwen3"])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def calibration(seconds: float = 1.0) -> Calibration:
    times = LayerTimes(prefill=[PrefillTime(1, seconds)], decode=[DecodeTime(1, 1, seconds)])
    return Calibration(
        blocks={"full": times},
        embedding=times,
        head=times,
        chunk_tokens=128,
        cpu_seconds_per_second=1.0,
    )


def test_every_part_is_timed_over_prompt_lengths_batches_and_contexts() -> None:
    measured = measure(TINY, "float32", budget_seconds=30.0)
    block = measured.blocks["full"]
    assert [t.num_tokens for t in block.prefill] == [16, 64, 128, 256, 384, 512]
    assert {t.batch for t in block.decode} == {1, 2, 4, 8, 16}
    assert {t.context for t in block.decode} == {64, 511}
    assert {t.batch for t in measured.head.decode} == {1, 2, 4, 8, 16}
    for part in (block, measured.embedding, measured.head):
        assert all(t.seconds > 0 for t in part.prefill)
        assert all(t.seconds > 0 for t in part.decode)


def test_blocks_of_each_kind_are_timed_apart() -> None:
    mixed = parse_config({**FAMILIES["qwen3_moe"], "use_sliding_window": True, "sliding_window": 9})
    measured = measure(mixed, "int8", budget_seconds=0.0)
    assert list(measured.blocks) == ["sliding-moe", "sliding"]
    assert all({t.batch for t in times.decode} == {1, 2} for times in measured.blocks.values())


def test_more_work_takes_longer() -> None:
    block = measure(TINY, "float32", budget_seconds=30.0).blocks["full"]
    prefill = {t.num_tokens: t.seconds for t in block.prefill}
    decode = {(t.batch, t.context): t.seconds for t in block.decode}
    assert prefill[512] > 2 * prefill[128]
    assert decode[16, 511] > 2 * decode[1, 511]


def test_a_spent_budget_leaves_out_what_is_large_but_never_the_first_two() -> None:
    measured = measure(TINY, "float32", budget_seconds=0.0)
    block = measured.blocks["full"]
    assert {t.batch for t in block.decode} == {1, 2}
    assert [t.num_tokens for t in block.prefill] == [16, 64, 128]
    assert {t.batch for t in measured.head.decode} == {1, 2}


def test_a_model_with_a_context_shorter_than_any_point_can_be_measured() -> None:
    short = replace(TINY, max_position_embeddings=24)
    block = measure(short, "float32", budget_seconds=0.5).blocks["full"]
    assert max(t.num_tokens for t in block.prefill) == 24
    assert max(t.context for t in block.decode) <= 24


def test_bfloat16_weights_are_measured_as_such() -> None:
    assert measure(TINY, "bfloat16", "bfloat16", budget_seconds=0.0).blocks


def test_a_measurement_is_made_once_and_then_read(tmp_path: Path) -> None:
    cache = MeasurementCache(tmp_path, Calibration)
    made = [cache.get_or_measure("key", lambda: calibration(2.0))]
    made.append(cache.get_or_measure("key", lambda: pytest.fail("measured again")))
    assert made == [calibration(2.0)] * 2


def test_another_key_is_another_measurement(tmp_path: Path) -> None:
    cache = MeasurementCache(tmp_path, Calibration)
    cache.get_or_measure("one", lambda: calibration(1.0))
    assert cache.get_or_measure("two", lambda: calibration(2.0)) == calibration(2.0)


def test_a_damaged_cache_file_is_measured_again(tmp_path: Path) -> None:
    cache = MeasurementCache(tmp_path, Calibration)
    cache.get_or_measure("key", lambda: calibration(1.0))
    for file in (tmp_path / "calibrations").glob("*.json"):
        file.write_bytes(b'{"blocks": 1')
    assert cache.get_or_measure("key", lambda: calibration(3.0)) == calibration(3.0)


def test_a_folder_that_cannot_be_written_costs_a_measurement_only(tmp_path: Path) -> None:
    (tmp_path / "calibrations").write_text("a file where the folder should be")
    cache = MeasurementCache(tmp_path, Calibration)
    assert cache.get_or_measure("key", lambda: calibration(4.0)) == calibration(4.0)


MEASURE_IN_ANOTHER_PROCESS = """
import sys, time
from pathlib import Path
from broker.control import DecodeTime, LayerTimes, PrefillTime
from nodes.calibration import Calibration
from nodes.profiles import MeasurementCache

folder, log = map(Path, sys.argv[1:])
times = LayerTimes(prefill=[PrefillTime(1, 1.0)], decode=[DecodeTime(1, 1, 1.0)])

def slow():
    began = time.monotonic()
    time.sleep(0.1)
    with log.open("a") as file:
        file.write(f"{began} {time.monotonic()}\\n")
    return Calibration(
        blocks={"full": times}, embedding=times, head=times, chunk_tokens=128,
        cpu_seconds_per_second=1.0,
    )

for key in ("first", "second"):
    MeasurementCache(folder, Calibration).get_or_measure(key, slow)
"""


def test_nodes_of_one_host_measure_one_after_the_other_and_share(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", MEASURE_IN_ANOTHER_PROCESS, str(tmp_path), str(log)]
    nodes = [subprocess.Popen(command) for _ in range(3)]
    assert [node.wait(30) for node in nodes] == [0, 0, 0]
    times = sorted(tuple(map(float, line.split())) for line in log.read_text().splitlines())
    assert len(times) == 2
    assert times[0][1] <= times[1][0]


def test_the_key_depends_on_what_changes_the_times_and_on_nothing_else() -> None:
    def key(config: object = TINY, weights: str = "float32", threads: int = 1) -> str:
        assert isinstance(config, type(TINY))
        return calibration_key(config, weights, "float32", "cpu", threads, "0.1")

    assert key() == key(replace(TINY, eos_token_ids=(5,), dtype="bfloat16"))
    keys = {key(), key(replace(TINY, hidden_size=64)), key(weights="bfloat16"), key(threads=2)}
    assert len(keys) == 4

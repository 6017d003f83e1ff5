"""What a device offers and says of itself."""

from pathlib import Path

import psutil
import pytest

from broker.architecture import kv_bytes_per_token, parse_config, stage_bytes
from nodes.hardware import (
    Sensors,
    cpu_quota_cores,
    describe_hardware,
    free_memory_bytes,
    give_memory_back,
    offered_bytes,
    share_slowdown,
    total_memory_bytes,
)
from nodes.settings import MemoryOffer
from tests.support.checkpoints import FAMILIES

CONFIG = parse_config(FAMILIES["llama"])
WEIGHT_BYTES = stage_bytes(CONFIG, "float32", range(CONFIG.num_layers), embedding=True, head=True)
KV_BYTES = kv_bytes_per_token(CONFIG, "float32", CONFIG.num_layers)


def test_freed_memory_is_given_back_or_kept_but_nothing_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    class Library:
        def malloc_trim(self, pad: int) -> None:
            asked.append(pad)

    monkeypatch.setattr("ctypes.CDLL", lambda name: Library())
    give_memory_back()
    assert asked == [0]
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    give_memory_back()


def test_a_share_counts_weights_and_the_kv_of_one_longest_request() -> None:
    offered = offered_bytes(MemoryOffer(share=0.6), CONFIG, "float32", "float32", 0)
    assert offered == int(0.6 * (WEIGHT_BYTES + CONFIG.max_position_embeddings * KV_BYTES))


def test_a_share_of_a_model_with_a_huge_context_counts_the_planned_context() -> None:
    long = parse_config({**FAMILIES["llama"], "max_position_embeddings": 131072})
    offered = offered_bytes(MemoryOffer(share=1.0), long, "float32", "float32", 0)
    assert offered == WEIGHT_BYTES + 2048 * KV_BYTES


def test_bytes_are_offered_as_they_are() -> None:
    offer = MemoryOffer.parse("2 GiB")
    assert offered_bytes(offer, CONFIG, "float32", "float32", 10) == 2 << 30


def test_without_a_setting_a_device_offers_most_of_its_free_memory() -> None:
    assert offered_bytes(None, CONFIG, "float32", "float32", 1000) == 700


def test_a_container_can_get_no_more_than_its_limit_leaves(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("300000000\n")
    (tmp_path / "memory.current").write_text("100000000\n")
    assert free_memory_bytes(tmp_path) == 200_000_000


def test_a_container_of_the_older_kind_is_understood(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("5000000\n")
    (folder / "memory.usage_in_bytes").write_text("6000000\n")
    assert free_memory_bytes(tmp_path) == 0


@pytest.mark.parametrize("limit", ["max\n", f"{(1 << 63) - 4096}\n"])
def test_a_container_without_a_limit_has_what_the_host_has(tmp_path: Path, limit: str) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("100\n")
    host = psutil.virtual_memory().available
    assert free_memory_bytes(tmp_path) == pytest.approx(host, rel=0.2)


def test_the_processor_is_named_as_the_kernel_does(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Fast CPU 9000\n")
    assert describe_hardware(file).startswith("Fast CPU 9000, ")


def test_a_board_without_model_name_is_described_by_what_the_platform_knows(
    tmp_path: Path,
) -> None:
    assert "cores" in describe_hardware(tmp_path / "absent")


def test_sensors_that_are_absent_are_left_out_and_the_rest_is_plausible() -> None:
    found = Sensors()
    assert found.read().memory_used_bytes is None
    found.reset_memory()
    sensors = found.read()
    assert sensors.memory_used_bytes is not None
    assert 0 <= sensors.memory_used_bytes < 1 << 30
    assert sensors.memory_available_bytes is not None
    assert sensors.memory_available_bytes > 0
    assert sensors.cpu_load_ratio is not None
    assert 0 <= sensors.cpu_load_ratio <= 1
    assert sensors.temperature_celsius is None or 0 < sensors.temperature_celsius < 150
    assert sensors.battery_ratio is None or 0 <= sensors.battery_ratio <= 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "25000 100000\n"}, 0.25),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "60000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.6),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_container_knows_the_cores_that_it_may_use(
    tmp_path: Path, files: dict[str, str], cores: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("share", "threads", "cores", "slowdown"),
    [(0.4, 1, 1, 2.5), (0.4, 1, 8, 1.0), (0.5, 4, 4, 2.0), (0.25, 2, 4, 2.0), (1.0, 4, 2, 2.0)],
)
def test_a_share_of_a_device_leaves_cores_alone_or_rests(
    share: float, threads: int, cores: float, slowdown: float
) -> None:
    assert share_slowdown(share, threads, cores) == pytest.approx(slowdown)


def test_a_container_has_the_memory_of_its_limit(tmp_path: Path) -> None:
    whole = total_memory_bytes(tmp_path)
    assert whole > 1 << 28
    (tmp_path / "memory.max").write_text("1000000\n")
    assert total_memory_bytes(tmp_path) == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert total_memory_bytes(tmp_path) == whole

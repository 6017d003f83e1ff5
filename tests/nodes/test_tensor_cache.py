"""Tensors on disk: whole or in part, shared by the nodes of a host, within a limit."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from broker.control import TensorInfo
from nodes.tensor_cache import TensorCache


def describe(data: bytes) -> TensorInfo:
    checksum = hashlib.sha256(data).hexdigest()
    return TensorInfo(
        file="f", offset=0, num_bytes=len(data), dtype="F32", shape=(1,), checksum=checksum
    )


def content(cache: TensorCache, info: TensorInfo) -> bytes | None:
    data = cache.read(info)
    return None if data is None else bytes(data)


def put(cache: TensorCache, data: bytes, *, used_at: int | None = None) -> TensorInfo:
    info = describe(data)
    with cache.receive(info) as landing:
        assert landing is not None
        landing.take(memoryview(data)[landing.position :])
    assert content(cache, info) == data
    if used_at is not None:
        path = cache.find(info)
        assert path is not None
        os.utime(path, (used_at, used_at))
    return info


def test_what_broke_off_is_gone_on_with(tmp_path: Path) -> None:
    data = b"weights" * 10
    info = describe(data)
    with TensorCache(tmp_path).receive(info) as landing:
        assert landing is not None
        landing.take(memoryview(data)[:20])
    assert TensorCache(tmp_path).find(info) is None
    with TensorCache(tmp_path).receive(info) as landing:
        assert landing is not None
        assert landing.position == 20
        landing.take(memoryview(data)[20:])
    assert content(TensorCache(tmp_path), info) == data


def test_an_unfinished_file_that_is_too_long_begins_anew(tmp_path: Path) -> None:
    info = describe(b"short")
    with TensorCache(tmp_path).receive(info) as landing:
        assert landing is not None
        landing.take(memoryview(b"much longer"))
    with TensorCache(tmp_path).receive(info) as landing:
        assert landing is not None
        assert landing.position == 0


def test_bytes_that_are_not_the_tensors_do_not_become_it(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    info = describe(b"right")
    with cache.receive(info) as landing:
        assert landing is not None
        landing.take(memoryview(b"wrong"))
        assert not landing.is_intact()
        landing.restart()
        landing.take(memoryview(b"right"))
        assert landing.is_intact()
    assert content(cache, info) == b"right"


def test_who_wants_what_another_is_fetching_waits_for_it(tmp_path: Path) -> None:
    info = describe(b"weights")
    second: list[bool] = []

    def receive() -> None:
        with TensorCache(tmp_path).receive(info) as landing:
            second.append(landing is None)

    with TensorCache(tmp_path).receive(info) as landing:
        assert landing is not None
        thread = threading.Thread(target=receive)
        thread.start()
        landing.take(memoryview(b"weights"))
    thread.join(20)
    assert second == [True]
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [""]


def test_who_stands_still_is_not_waited_for(tmp_path: Path) -> None:
    info = describe(b"weights")
    waited: list[float] = []
    with TensorCache(tmp_path).receive(info) as frozen:
        assert frozen is not None
        with TensorCache(tmp_path).receive(info, waited.append) as landing:
            assert landing is not None
            landing.take(memoryview(b"weights"))
        assert 4 < sum(waited) < 6
        assert content(TensorCache(tmp_path), info) == b"weights"
        # And when it wakes up, it does no harm.
        frozen.take(memoryview(b"weights"))
    assert content(TensorCache(tmp_path), info) == b"weights"
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [""]


def test_those_used_least_lately_go_when_the_limit_is_reached(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, limit_bytes=100)
    infos = [put(cache, bytes([number]) * 30, used_at=1000 - number) for number in range(3)]
    newest = put(cache, b"n" * 30)
    # One is enough to be a tenth under the limit.
    assert [cache.find(info) is not None for info in (*infos, newest)] == [True, True, False, True]
    assert cache.used_bytes == 90


def test_what_was_fetched_ahead_stays_until_it_is_read(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, limit_bytes=50)
    infos = [describe(bytes([number]) * 30) for number in range(3)]
    for number, info in enumerate(infos):
        with cache.receive(info) as landing:
            assert landing is not None
            landing.take(memoryview(bytes([number]) * 30))
    assert all(cache.read(info) is not None for info in infos)
    put(cache, b"n" * 20)
    assert cache.used_bytes <= 50


def test_a_file_damaged_on_disk_is_no_longer_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = TensorCache(tmp_path)
    info = put(cache, b"weights")
    path = cache.find(info)
    assert path is not None
    path.write_bytes(b"weighty")
    assert cache.read(info) is None
    assert cache.find(info) is None
    assert "damaged and is fetched again" in caplog.text

"""Where keys are kept: in a file that only its owner reads, and in Redis with other gateways."""

import stat
from pathlib import Path

import pytest
import redis

from gateway.access.keys import Scope, WrongKeyError
from gateway.access.shared import RedisAccess
from gateway.access.store import KeyFile, KeyFileError, KeyStore


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


def store(folder: Path, shared: RedisAccess | None = None, **options: str) -> KeyStore:
    return KeyStore(KeyFile(folder), shared, clock=CLOCK, **options)


async def test_a_key_outlives_its_gateway_in_a_private_file_without_the_key(tmp_path: Path) -> None:
    text, key = await store(tmp_path).create("me", Scope.ADMIN)

    path = tmp_path / "keys.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert text not in path.read_text()
    assert store(tmp_path).ring.find(text, CLOCK()) == key


async def test_a_key_that_another_process_writes_counts_at_the_next_look(tmp_path: Path) -> None:
    running = store(tmp_path)
    assert running.ring.is_open
    text, _ = await store(tmp_path).create("me", Scope.ADMIN)
    await running.look()
    assert running.ring.find(text, CLOCK()).name == "me"


@pytest.mark.parametrize("content", ["", "[", "{}", '[{"id": 1}]'])
def test_a_damaged_file_is_an_error_and_never_an_open_gateway(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(KeyFileError, match=r"keys\.json"):
        store(tmp_path)


async def test_gateways_share_keys_and_revoke_for_each_other(
    tmp_path: Path, redis_url: str
) -> None:
    shared = RedisAccess(redis_url, "lab", CLOCK)
    here, there = store(tmp_path / "a", shared), store(tmp_path / "b", shared)
    await here.create("admin", Scope.ADMIN)
    text, key = await here.create("lamp", Scope.USER)

    await there.look()
    assert there.ring.find(text, CLOCK()) == key
    await there.revoke(key.id)
    await here.look()

    with pytest.raises(WrongKeyError, match="revoked"):
        here.ring.find(text, CLOCK())
    await shared.close()


async def test_redis_has_no_key_in_clear_and_is_filled_again_when_it_comes_back_empty(
    tmp_path: Path, redis_url: str
) -> None:
    shared = RedisAccess(redis_url, "lab", CLOCK)
    keys = store(tmp_path, shared)
    text, key = await keys.create("me", Scope.ADMIN)
    with redis.Redis.from_url(redis_url) as client:
        assert text.encode() not in b"".join(client.hgetall("e2llm:lab:keys").values())
        client.flushall()
        await keys.look()
        assert client.hexists("e2llm:lab:keys", key.id)
    assert keys.ring.find(text, CLOCK()) == key
    await shared.close()


async def test_a_damaged_record_in_redis_is_left_out(tmp_path: Path, redis_url: str) -> None:
    shared = RedisAccess(redis_url, "lab", CLOCK)
    with redis.Redis.from_url(redis_url) as client:
        client.hset("e2llm:lab:keys", "x", "{")
    keys = store(tmp_path, shared)
    text, key = await keys.create("me", Scope.ADMIN)
    await keys.look()
    assert keys.ring.find(text, CLOCK()) == key
    await shared.close()


async def test_known_keys_stay_in_force_without_redis(tmp_path: Path, unused_tcp_port: int) -> None:
    text, _ = await store(tmp_path).create("me", Scope.ADMIN)
    shared = RedisAccess(f"redis://127.0.0.1:{unused_tcp_port}/0", "lab", CLOCK)
    keys = store(tmp_path, shared)
    await keys.start()
    assert keys.ring.find(text, CLOCK()).name == "me"
    await keys.stop()
    await shared.close()


async def test_the_key_of_the_settings_counts_and_is_in_no_copy(
    tmp_path: Path, redis_url: str
) -> None:
    shared = RedisAccess(redis_url, "lab", CLOCK)
    keys = store(tmp_path, shared, admin_key="correct horse battery staple")
    await keys.create("lamp", Scope.USER)
    assert keys.ring.find("correct horse battery staple", CLOCK()).scope is Scope.ADMIN
    assert "settings" not in KeyFile(tmp_path).read().keys
    with redis.Redis.from_url(redis_url) as client:
        assert not client.hexists("e2llm:lab:keys", "settings")
    await shared.close()

"""The list of keys: what is kept of a key, when it counts, and how two copies become one."""

import itertools
import random

import pytest

from gateway.access.door import needed_scope
from gateway.access.keys import (
    GIVEN_ID,
    Key,
    KeyRefusedError,
    KeyRing,
    Limits,
    Scope,
    WrongKeyError,
    given_key,
    make_key,
    ring_of,
)

NOW = 1000.0


def made(scope: Scope, name: str = "someone", expires_at: float | None = None) -> tuple[str, Key]:
    return make_key(name, scope, NOW, expires_at=expires_at)


def test_a_key_is_found_by_itself_and_kept_only_as_a_hash() -> None:
    text, key = made(Scope.ADMIN)
    ring = KeyRing().added(key, NOW)
    assert ring.find(text, NOW) == key
    assert text.split("-", 2)[2] not in repr(ring)


@pytest.mark.parametrize("change", ["x", "-", " "])
def test_a_key_with_another_letter_is_none(change: str) -> None:
    text, key = made(Scope.ADMIN)
    with pytest.raises(WrongKeyError, match="incorrect"):
        KeyRing().added(key, NOW).find(text + change, NOW)


@pytest.mark.parametrize("text", ["", "e2llm", "e2llm-", "e2llm--", "sk-abc", "e2llm-0-\ud800"])
def test_what_is_no_key_is_refused_without_an_error_of_ours(text: str) -> None:
    _, key = made(Scope.ADMIN)
    with pytest.raises(WrongKeyError):
        KeyRing().added(key, NOW).find(text, NOW)


def test_an_expired_or_revoked_key_is_named_to_its_owner() -> None:
    _, admin = made(Scope.ADMIN)
    text, key = made(Scope.USER, "lamp", expires_at=NOW + 5)
    ring = KeyRing().added(admin, NOW).added(key, NOW)
    with pytest.raises(WrongKeyError, match="'lamp' is expired"):
        ring.find(text, NOW + 5)
    with pytest.raises(WrongKeyError, match="'lamp' is revoked"):
        ring.revoked(key.id, NOW).find(text, NOW + 1)


def test_the_first_key_is_an_admins() -> None:
    _, user = made(Scope.USER)
    with pytest.raises(KeyRefusedError, match="first key"):
        KeyRing().added(user, NOW)


def test_the_last_admins_key_stays() -> None:
    _, first = made(Scope.ADMIN)
    _, second = made(Scope.ADMIN)
    ring = KeyRing().added(first, NOW).added(second, NOW).revoked(first.id, NOW)
    with pytest.raises(KeyRefusedError, match="last key"):
        ring.revoked(second.id, NOW)


def test_keys_that_have_ended_keep_the_gateway_closed_and_tokens_do_not_close_it() -> None:
    _, admin = made(Scope.ADMIN, expires_at=NOW + 1)
    _, token = made(Scope.JOIN, expires_at=NOW + 1)
    assert KeyRing().is_open
    assert KeyRing().added(token, NOW).is_open
    assert not KeyRing().added(admin, NOW).pruned(NOW + 9).is_open


def test_expired_tokens_are_forgotten_and_keys_are_not() -> None:
    _, admin = made(Scope.ADMIN, expires_at=NOW + 1)
    _, token = made(Scope.JOIN, expires_at=NOW + 1)
    ring = KeyRing().added(admin, NOW).added(token, NOW)
    assert set(ring.pruned(NOW + 1).keys) == {admin.id}


def test_a_token_must_expire_and_limits_are_at_least_one() -> None:
    with pytest.raises(KeyRefusedError, match="expire"):
        made(Scope.JOIN)
    with pytest.raises(KeyRefusedError, match="concurrency"):
        Limits(concurrency=0)
    with pytest.raises(KeyRefusedError, match="name"):
        made(Scope.USER, "two\nlines")


def test_copies_become_one_in_any_order_and_what_is_revoked_stays_so() -> None:
    rng = random.Random(7)
    keys = [made(Scope.ADMIN)[1] for _ in range(4)]
    copies = []
    for _ in range(4):
        ring = ring_of(rng.sample(keys, 3))
        for key_id in rng.sample(sorted(ring.keys), 1):
            ring = ring.revoked(key_id, NOW + rng.randrange(5))
        copies.append(ring)

    results = []
    for order in itertools.permutations(copies):
        merged = KeyRing()
        for ring in (*order, *order):
            merged = merged.merged(ring)
        results.append(merged.keys)

    assert all(result == results[0] for result in results)
    revoked = {key.id for ring in copies for key in ring.keys.values() if key.revoked_at}
    assert revoked == {key.id for key in results[0].values() if key.revoked_at}


def test_the_key_in_the_settings_is_any_long_text_and_cannot_be_revoked() -> None:
    key = given_key("correct horse battery staple")
    ring = ring_of([key])
    assert ring.find("correct horse battery staple", NOW).id == GIVEN_ID
    with pytest.raises(KeyRefusedError, match="settings"):
        ring.revoked(GIVEN_ID, NOW)
    with pytest.raises(ValueError, match="20 characters"):
        given_key("short")


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/healthz", None),
        ("/readyz", None),
        ("/weights/rev/model.safetensors", None),
        ("/v1/chat/completions", Scope.USER),
        ("/api/chat", Scope.USER),
        ("/tokenize", Scope.USER),
        ("/fog/requests/chatcmpl-1", Scope.USER),
        ("/fog/requests", Scope.ADMIN),
        ("/fog/requests/", Scope.ADMIN),
        ("/fog/plan", Scope.ADMIN),
        ("/fog/devices/pi/drain", Scope.ADMIN),
        ("/fog/keys", Scope.ADMIN),
        ("/fog/join", Scope.JOIN),
        ("/what-somebody-adds-later", Scope.ADMIN),
        ("//healthz", Scope.ADMIN),
    ],
)
def test_each_path_needs_a_scope_and_one_that_is_not_named_needs_an_admin(
    path: str, scope: Scope | None
) -> None:
    assert needed_scope(path) is scope

"""API keys: what they are, who has which, and how copies of the list are made one. Pure.

A key is ``e2llm-<id>-<secret>``. Kept is a hash of it, so that who reads the list cannot use it.
Records are never changed but by revoking, and never removed while they could still count, so
two copies are merged without a rule of who is right: all records of both, revoked if either
says so. Copies are in the gateway's state folder and in Redis (docs/decisions/0031).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec
from msgspec.structs import replace

PREFIX: Final = "e2llm"
_ID_BYTES: Final = 6
_SECRET_BYTES: Final = 24
_MAX_NAME_CHARACTERS: Final = 64
GIVEN_ID: Final = "settings"
"""Id of the key that a gateway has from its settings; it is in no copy of the list."""
MIN_GIVEN_CHARACTERS: Final = 20


class Scope(StrEnum):
    """What a key is good for; `allows` says what follows."""

    USER = "user"
    ADMIN = "admin"
    JOIN = "join"

    def allows(self, needed: Scope) -> bool:
        """Whether it is good for what needs ``needed``: its own, and an admin's for all."""
        return self is needed or self is Scope.ADMIN


class WrongKeyError(Exception):
    """A key is unknown, expired or revoked; the message says which, and not the key."""


class KeyRefusedError(ValueError):
    """A key cannot be made or revoked as asked; the message says why."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one key may use; None: no limit.

    Attributes:
        requests_per_minute: Requests for text that are begun.
        tokens_per_minute: Tokens of prompts and answers together.
        concurrency: Requests for text that are open at once.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise KeyRefusedError(f"{name} is {value}; at least 1")


NO_LIMITS: Final = Limits()


class Key(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of a key.

    Attributes:
        id: Also in the key itself, where it says which hash to compare with.
        hash: SHA-256 of the key, hexadecimal. No slow hash: nobody guesses 192 random bits.
        created_at, expires_at, revoked_at: UTC seconds.
        device: The only device that a key to join is good for; None: any new one.
    """

    id: str
    name: str
    scope: Scope
    hash: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    limits: Limits = NO_LIMITS
    device: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= _MAX_NAME_CHARACTERS or not self.name.isprintable():
            raise KeyRefusedError(
                f"a key's name has 1 to {_MAX_NAME_CHARACTERS} printable characters"
            )
        if self.scope is Scope.JOIN and self.expires_at is None:
            raise KeyRefusedError("a token to join must expire")

    def problem(self, now: float) -> str | None:
        """Return why the key is no longer good, or None."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return None


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys that a gateway knows, by id."""

    keys: Mapping[str, Key] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether no key was ever made, so that none can be asked for.

        Keys that have ended count: a fog that was closed never opens by itself.
        """
        return all(key.scope is Scope.JOIN for key in self.keys.values())

    def find(self, text: str, now: float) -> Key:
        """Return the record of a key.

        Raises:
            WrongKeyError: It is no key of these, or no longer good.
        """
        parts = text.split("-", 2)
        key_id = parts[1] if len(parts) == 3 and parts[0] == PREFIX else GIVEN_ID
        known = self.keys.get(key_id)
        # Compared also for an unknown id, so that the time does not tell which exist.
        is_right = hmac.compare_digest(hash_of(text), known.hash if known is not None else "")
        if known is None or not is_right:
            raise WrongKeyError("incorrect API key")
        if problem := known.problem(now):
            raise WrongKeyError(f"the API key {known.name!r} is {problem}")
        return known

    def added(self, key: Key, now: float) -> KeyRing:
        """Return the ring with one key more.

        Raises:
            KeyRefusedError: It would be the first, and nobody could make a second with it.
        """
        if key.scope is Scope.USER and not self._admins(now):
            raise KeyRefusedError(
                "the first key must have the scope admin: with a key of a user alone, nobody "
                "could make another"
            )
        return KeyRing({**self.keys, key.id: key})

    def revoked(self, key_id: str, now: float) -> KeyRing:
        """Return the ring in which a key no longer counts.

        Raises:
            KeyRefusedError: There is none of that id, or nobody could make a key after it.
        """
        known = self.keys.get(key_id)
        if known is None:
            raise KeyRefusedError(f"no key {key_id}")
        if key_id == GIVEN_ID:
            raise KeyRefusedError("this key is in the gateway's settings; take it out there")
        if self._admins(now) == [known]:
            raise KeyRefusedError(
                f"{known.name!r} is the last key with the scope admin; make another one first"
            )
        ended = replace(known, revoked_at=known.revoked_at or now)
        return KeyRing({**self.keys, key_id: ended})

    def merged(self, other: KeyRing) -> KeyRing:
        """Return the keys of both; in any order and as often as you like, the result is one."""
        keys = dict(self.keys)
        for key_id, key in other.keys.items():
            known = keys.get(key_id)
            if known is None:
                keys[key_id] = key
            elif key.revoked_at is not None:
                keys[key_id] = replace(
                    known, revoked_at=min(known.revoked_at or key.revoked_at, key.revoked_at)
                )
        return KeyRing(keys)

    def pruned(self, now: float) -> KeyRing:
        """Return the ring without expired tokens to join, which come by the dozen.

        Revoked keys stay: a copy that was away when they were revoked would bring them back.
        """
        kept = {
            key_id: key
            for key_id, key in self.keys.items()
            if key.scope is not Scope.JOIN or key.expires_at is None or key.expires_at > now
        }
        return self if len(kept) == len(self.keys) else KeyRing(kept)

    def _admins(self, now: float) -> list[Key]:
        return [
            key
            for key in self.keys.values()
            if key.scope is Scope.ADMIN and key.problem(now) is None
        ]


def make_key(
    name: str,
    scope: Scope,
    now: float,
    *,
    expires_at: float | None = None,
    limits: Limits | None = None,
    device: str | None = None,
) -> tuple[str, Key]:
    """Return a new key and its record; `KeyRefusedError` where it makes no sense."""
    key_id = secrets.token_hex(_ID_BYTES)
    text = f"{PREFIX}-{key_id}-{secrets.token_urlsafe(_SECRET_BYTES)}"
    key = Key(
        id=key_id,
        name=name,
        scope=scope,
        hash=hash_of(text),
        created_at=now,
        expires_at=expires_at,
        limits=limits or NO_LIMITS,
        device=device,
    )
    return text, key


def given_key(text: str) -> Key:
    """Return the record of the admin key in the settings; ValueError if it is too short."""
    if len(text) < MIN_GIVEN_CHARACTERS or text.startswith(f"{PREFIX}-"):
        raise ValueError(
            f"admin_key needs at least {MIN_GIVEN_CHARACTERS} characters, and must not begin "
            f"with {PREFIX}-, as the keys do that a gateway makes"
        )
    return Key(id=GIVEN_ID, name=GIVEN_ID, scope=Scope.ADMIN, hash=hash_of(text), created_at=0.0)


def hash_of(text: str) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def ring_of(keys: Iterable[Key]) -> KeyRing:
    """Return a ring of records."""
    return KeyRing({key.id: key for key in keys})

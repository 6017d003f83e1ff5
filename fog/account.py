"""Which gateway a person talks to, and with which API key.

What is on the command line or in the environment counts first. Else
``~/.config/e2llm/config.toml`` (``$XDG_CONFIG_HOME``) may have both::

    url = "http://fog.local:8080"
    key = "e2llm-..."

The key in the file is for the address in the file, and is sent to no other.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fog.client import DEFAULT_URL, KEY_VARIABLE, FogClient


class AccountError(Exception):
    """The file cannot be read or says something else; the message names it."""


@dataclass(frozen=True, slots=True)
class Account:
    """An address and the key for it."""

    url: str = DEFAULT_URL
    key: str | None = None


def connect(url: str | None, key: str | None, **options: Any) -> FogClient:
    """Return a client of the gateway that is meant; ``options`` are for `FogClient`.

    Raises:
        AccountError: The file is wrong.
        AddressError: The address is none.
    """
    account = meant_account(url, key)
    return FogClient(account.url, key=account.key, **options)


def meant_account(url: str | None, key: str | None) -> Account:
    """Return the address and the key that a person means.

    Args:
        url: As given by the person; None: that of the file, or of this machine.
        key: As given by the person; None: that of the file, if it is for this address.

    Raises:
        AccountError: The file is wrong.
    """
    known = load_account(os.environ)
    chosen = url or known.url
    if key is None and chosen.rstrip("/") == known.url.rstrip("/"):
        key = known.key
    return Account(chosen, key)


def load_account(environ: Mapping[str, str]) -> Account:
    """Return what the file says; without a file, this machine and no key."""
    path = account_path(environ)
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Account()
    except (OSError, ValueError) as error:
        raise AccountError(f"{path} cannot be read: {error}") from error
    if unknown := sorted(set(values) - {"url", "key"}):
        raise AccountError(f"{path}: unknown: {', '.join(unknown)}; it may have url and key")
    if not all(isinstance(value, str) for value in values.values()):
        raise AccountError(f"{path}: url and key are texts")
    return Account(**values)


def account_path(environ: Mapping[str, str]) -> Path:
    """Return where the file is, as the XDG base directory standard has it."""
    base = environ.get("XDG_CONFIG_HOME", "")
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".config"
    return root / "e2llm" / "config.toml"


def key_advice(environ: Mapping[str, str]) -> str:
    """Return how a person gives a key."""
    return f"give a key with --key, {KEY_VARIABLE} or in {account_path(environ)}"

"""The file of users and passwords of a fog, readable by its owner only.

{"planner": {"kind": "planner", "password": "..."}, "node-1": {"kind": "node", ...}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from broker.access import Credential, Kind, generate_password
from broker.topics import PLANNER_USER

PASSWORD_VARIABLE_PREFIX: Final = "E2LLM_PASSWORD_"
HOME_ASSISTANT_USER: Final = "home-assistant"
"""Under which Home Assistant logs in, where a fog is shown there."""


class CredentialsError(ValueError):
    """The credentials file is damaged, or a user would have two kinds."""


def load_credentials(path: Path) -> dict[str, Credential]:
    """Return the users in the file, by name; none if there is no file.

    Raises:
        CredentialsError: The file is not what `save_credentials` writes.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    try:
        return {
            user: Credential(user, entry["password"], Kind(entry["kind"]))
            for user, entry in json.loads(text).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # Without the text: it holds passwords.
        raise CredentialsError(
            f"{path} is not a credentials file ({type(error).__name__}); "
            "repair it, or delete it to have new passwords made"
        ) from None


def save_credentials(path: Path, credentials: Mapping[str, Credential]) -> None:
    """Write the file with mode 600, whole or not at all."""
    entries = {
        user: {"kind": credential.kind.value, "password": credential.password}
        for user, credential in sorted(credentials.items())
    }
    write_private(path, json.dumps(entries, indent=2) + "\n")


def write_private(path: Path, text: str) -> None:
    """Write a text file with mode 600, whole or not at all, its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    draft.replace(path)


def load_or_create_credentials(
    path: Path,
    nodes: Iterable[str] = (),
    gateways: Iterable[str] = (),
    clients: Iterable[str] = (),
    homes: Iterable[str] = (),
    given: Mapping[str, str] | None = None,
) -> dict[str, Credential]:
    """Return all users in the file after adding those that it lacks; the planner always.

    Args:
        path: The file; made with mode 600 if it is not there.
        nodes: Device ids.
        gateways: Gateway ids.
        clients: Applications and IoT devices that use inference over MQTT.
        homes: Home Assistants that show the fog.
        given: Passwords by user, which replace those in the file.

    Raises:
        CredentialsError: The file is damaged, or a name is already a user of another kind.
        ValueError: A name or password cannot be used.
    """
    credentials = load_credentials(path)
    before = dict(credentials)
    wanted = [(PLANNER_USER, Kind.PLANNER)]
    wanted += [(user, Kind.NODE) for user in nodes]
    wanted += [(user, Kind.GATEWAY) for user in gateways]
    wanted += [(user, Kind.CLIENT) for user in clients]
    wanted += [(user, Kind.HOME_ASSISTANT) for user in homes]
    for user, kind in wanted:
        known = credentials.get(user)
        if known is not None and known.kind is not kind:
            raise CredentialsError(
                f"{user!r} is a {known.kind} and cannot be a {kind} too; rename one of them"
            )
        password = (given or {}).get(user)
        if password is None:
            password = known.password if known else generate_password()
        credentials[user] = Credential(user, password, kind)
    if credentials != before:
        save_credentials(path, credentials)
    return credentials


def password_variable(user: str) -> str:
    """Return the environment variable with a user's password: E2LLM_PASSWORD_NODE_1."""
    letters = "".join(letter if letter.isalnum() else "_" for letter in user)
    return PASSWORD_VARIABLE_PREFIX + letters.upper()


def given_passwords(
    users: Iterable[str], environ: Mapping[str, str], secrets_folder: Path | None
) -> dict[str, str]:
    """Return the passwords that are given from outside.

    A file named after the user in the folder (a Docker secret) goes before the variable
    `password_variable`; line ends at the file's end are not part of the password.
    """
    given = {}
    for user in users:
        password = environ.get(password_variable(user), "")
        if secrets_folder is not None and (secrets_folder / user).is_file():
            password = (secrets_folder / user).read_text("utf-8").rstrip("\r\n")
        if password:
            given[user] = password
    return given

"""Secrets of the compose fog: who may speak to the broker and to Redis.

    python -m fog.compose --users DIR --mosquitto DIR --redis DIR --node NAME ... --gateway NAME ...

Runs once before everything else in ``docker compose up``. Each service mounts only its own
folder below ``--users``, so a node cannot read another's password. Passwords are made at
random, kept in the volumes, and stay the same until the volumes are removed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from broker.access import generate_password
from broker.address import BrokerAddress
from broker.credentials import HOME_ASSISTANT_USER, load_or_create_credentials, write_private
from broker.server import write_access_files
from broker.topics import PLANNER_USER, check_home_prefix

MOSQUITTO_UID = 1883
"""User of ``eclipse-mosquitto``, which refuses files that others own."""

HEALTH_USER = "health"
"""A client without rights beyond its own replies; the broker's health check logs in as it."""

_CREDENTIALS = "credentials.json"
_REDIS_CONFIGURATION = """\
# Written by fog/compose.py. On disk, so that the journal survives a restart.
requirepass {password}
appendonly yes
dir /data
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write all files; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        write_secrets(
            options.users,
            options.mosquitto,
            options.redis,
            nodes=options.node,
            gateways=options.gateway,
            site=options.site,
            home=options.home_assistant or None,
        )
    except (ValueError, OSError) as error:
        print(f"python -m fog.compose: {error}", file=sys.stderr)
        return 2
    return 0


def write_secrets(
    users: Path,
    mosquitto: Path,
    redis: Path,
    *,
    nodes: Sequence[str],
    gateways: Sequence[str],
    site: str = "local",
    home: str | None = None,
    broker_host: str = "broker",
    redis_host: str = "redis",
) -> None:
    """Write the files that the services of ``docker-compose.yml`` mount.

    Args:
        users: Gets a folder per process with ``broker`` (its URL) and, for planner and
            gateways, ``redis``; readable by any user of the one container that mounts it.
        mosquitto: Gets credentials, password file, ACL and the passwords of the health check
            and of Home Assistant.
        redis: Gets ``redis.conf`` and ``password``.
        nodes: Device ids.
        gateways: Gateway ids.
        site: First level of all topics.
        home: Prefix of Home Assistant's discovery; None: the fog is not shown there.
        broker_host: Name of the broker's service.
        redis_host: Name of the service of Redis.
    """
    if home is not None:
        check_home_prefix(home)
    credentials = load_or_create_credentials(
        mosquitto / _CREDENTIALS,
        nodes,
        gateways,
        clients=[HEALTH_USER],
        homes=[] if home is None else [HOME_ASSISTANT_USER],
    )
    write_access_files(mosquitto, credentials, site, home)
    for user in (HEALTH_USER, *([] if home is None else [HOME_ASSISTANT_USER])):
        write_private(mosquitto / user, credentials[user].password)
    if os.geteuid() == 0:
        for path in mosquitto.iterdir():
            os.chown(path, MOSQUITTO_UID, MOSQUITTO_UID)
    password_file = redis / "password"
    if not password_file.is_file():
        redis.mkdir(parents=True, exist_ok=True)
        password_file.write_text(generate_password())
    redis_password = password_file.read_text()
    (redis / "redis.conf").write_text(_REDIS_CONFIGURATION.format(password=redis_password))
    for user in (PLANNER_USER, *gateways, *nodes):
        folder = users / user
        folder.mkdir(parents=True, exist_ok=True)
        address = BrokerAddress(broker_host, 1883, user, credentials[user].password)
        (folder / "broker").write_text(address.url)
        if user not in nodes:
            (folder / "redis").write_text(f"redis://:{redis_password}@{redis_host}:6379/0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fog.compose", description=__doc__)
    for name in ("users", "mosquitto", "redis"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    parser.add_argument("--node", action="append", default=[], metavar="NAME")
    parser.add_argument("--gateway", action="append", default=[], metavar="NAME")
    parser.add_argument("--site", default="local")
    # Empty as well as absent: the compose file passes on what may not be set.
    parser.add_argument("--home-assistant", metavar="PREFIX", default="")
    return parser


if __name__ == "__main__":
    sys.exit(main())

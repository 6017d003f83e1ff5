"""Run a broker, or write what Mosquitto needs to know the users of a fog.

    python -m broker --state DIR --port 1883 [--bind ADDR] [--site local] [--node NAME ...]
    python -m broker passwords --out DIR --node NAME ... --gateway NAME ... [--secrets DIR]

The first form keeps users and passwords in DIR/credentials.json (mode 600), adds those that
are named and missing, and runs Mosquitto, or amqtt in this process where there is none.
It also takes devices in that join: a gateway asks for them in DIR/joins (broker/joining.py).
With ``--home-assistant homeassistant`` (the prefix of its discovery) gateways may show the fog in
Home Assistant, which logs in as the user home-assistant.
The second form keeps the same file and writes DIR/mosquitto.passwords and DIR/mosquitto.acl,
for a Mosquitto that somebody else runs, such as a container.

In both forms a password may be given: in a file named after the user in the folder
``--secrets`` (as Docker mounts secrets), else in the environment variable
``E2LLM_PASSWORD_<USER>``, upper case, with ``_`` for every other character than letters and
digits: E2LLM_PASSWORD_NODE_1 for node-1. What is not given is kept, or made at random.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from broker.access import Credential
from broker.credentials import (
    HOME_ASSISTANT_USER,
    given_passwords,
    load_or_create_credentials,
    save_credentials,
)
from broker.joining import FOLDER, JoinFolder
from broker.logs import LogFormat, configure_log
from broker.server import (
    ACL_FILE,
    PASSWORD_FILE,
    Joining,
    find_mosquitto,
    run_amqtt,
    run_mosquitto,
    write_access_files,
    write_mosquitto_files,
)
from broker.topics import HOME_PREFIX, PLANNER_USER, check_home_prefix, check_level

CREDENTIALS_FILE = "credentials.json"

logger = logging.getLogger("broker")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    options = _parser().parse_args(arguments)
    form = LogFormat(os.environ.get("E2LLM_LOG_FORMAT") or LogFormat.TEXT)
    configure_log(os.environ.get("E2LLM_LOG", "").upper() or "INFO", form)
    try:
        check_level(options.site)
        if options.home_assistant is not None:
            check_home_prefix(options.home_assistant)
        if options.command == "passwords":
            return _write_passwords(options)
        return _run(options)
    except (ValueError, OSError) as error:
        print(f"python -m broker: {error}", file=sys.stderr)  # noqa: T201 - for a person
        return 2


def _run(options: argparse.Namespace) -> int:
    if options.state is None or options.port is None:
        raise ValueError("--state and --port are needed to run a broker; see --help")
    credentials = _credentials(options, options.state)
    folder = JoinFolder(options.state / FOLDER)
    folder.make()
    keep = partial(save_credentials, options.state / CREDENTIALS_FILE)
    joining = Joining(folder, credentials, keep)
    bind, port, site, home = options.bind, options.port, options.site, options.home_assistant
    binary = find_mosquitto() if options.prefer == "mosquitto" else None
    if binary is None:
        return run_amqtt(bind, port, credentials, site, joining, home=home)
    configuration = write_mosquitto_files(options.state, port, credentials, site, bind, home=home)
    return run_mosquitto(binary, configuration, bind, port, site, joining, home=home)


def _write_passwords(options: argparse.Namespace) -> int:
    credentials = _credentials(options, options.out)
    write_access_files(options.out, credentials, options.site, options.home_assistant)
    if options.owner is not None:
        user, _, group = options.owner.partition(":")
        for name in (PASSWORD_FILE, ACL_FILE):
            os.chown(options.out / name, int(user), int(group or user))
    logger.info("wrote passwords and rules of %d users to %s", len(credentials), options.out)
    return 0


def _credentials(options: argparse.Namespace, folder: Path) -> dict[str, Credential]:
    homes = [] if options.home_assistant is None else [HOME_ASSISTANT_USER]
    users = [PLANNER_USER, *options.node, *options.gateway, *options.client, *homes]
    return load_or_create_credentials(
        folder / CREDENTIALS_FILE,
        nodes=options.node,
        gateways=options.gateway,
        clients=options.client,
        homes=homes,
        given=given_passwords(users, os.environ, options.secrets),
    )


def _parser() -> argparse.ArgumentParser:
    users = argparse.ArgumentParser(add_help=False)
    users.add_argument(
        "--site", default=os.environ.get("E2LLM_SITE") or "local", help="first level of topics"
    )
    for kind in ("node", "gateway", "client"):
        users.add_argument(
            f"--{kind}", action="append", default=[], metavar="NAME", help=f"a {kind}; repeatable"
        )
    users.add_argument(
        "--home-assistant",
        metavar="PREFIX",
        help="let the fog be shown in Home Assistant, whose discovery has this prefix "
        f"(usually {HOME_PREFIX}), and let that log in as {HOME_ASSISTANT_USER}",
    )
    users.add_argument(
        "--secrets", type=Path, metavar="DIR", help="read passwords from files named after users"
    )

    parser = argparse.ArgumentParser(
        prog="python -m broker",
        parents=[users],
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--state", type=Path, metavar="DIR", help="folder of its files")
    parser.add_argument("--port", type=int, help="TCP port")
    parser.add_argument("--bind", default="127.0.0.1", metavar="ADDR", help="address to listen on")
    parser.add_argument("--prefer", choices=("mosquitto", "amqtt"), default="mosquitto")
    commands = parser.add_subparsers(dest="command", metavar="")
    passwords = commands.add_parser(
        "passwords",
        parents=[users],
        help="write Mosquitto's password and ACL files",
        description=(
            "Write DIR/mosquitto.passwords and DIR/mosquitto.acl for a Mosquitto that is already "
            "there, and the passwords themselves to DIR/credentials.json (mode 600). Users who "
            "are there already keep their passwords."
        ),
    )
    passwords.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the three files"
    )
    passwords.add_argument(
        "--owner", metavar="UID[:GID]", help="give the two files to the user Mosquitto runs as"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

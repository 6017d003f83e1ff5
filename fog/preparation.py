"""What is made before the first process of a local fog starts: folders, ports, passwords."""

from __future__ import annotations

import os
import random
import secrets
from dataclasses import dataclass
from pathlib import Path

from broker.address import BrokerAddress
from broker.credentials import HOME_ASSISTANT_USER, load_or_create_credentials, write_private
from fog.config import CLIENT_ID, DEFAULT_FOG, GATEWAY_ID, FogConfig
from fog.model_choice import ModelChoice
from fog.ports import LOOPBACK, free_port
from fog.redis_server import find_redis_server, write_redis_config
from fog.services import ServicePlan
from fog.state import StateFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What the command line of `e2llm up` says.

    Attributes:
        state: State folder; None: the default of the port.
        weights: Weight format; None: what the fog file says, or the gateway's default.
        once: Ask this, print the answer and stop.
        json_target: Where the answer goes as JSON: a file, or ``-`` for standard output.
        timeout_seconds: Time without progress after which the start is given up.
        verbose: Show the children's logs, each line with the name of its process.
        chaos: Let `e2llm chaos` cut and slow devices: their connections go over relays.
    """

    fog: Path = DEFAULT_FOG
    state: Path | None = None
    port: int = 8080
    model: str | None = None
    model_name: str | None = None
    weights: str | None = None
    once: str | None = None
    json_target: str | None = None
    max_tokens: int = 64
    timeout_seconds: float = 180.0
    verbose: bool = False
    chaos: bool = False


def prepare(
    config: FogConfig, model: ModelChoice, options: UpOptions, folder: StateFolder
) -> ServicePlan:
    """Make folders, ports, credentials and Redis's configuration.

    One user is for programs of the person: `StateFolder.client_url` has what it needs. Another
    is for Home Assistant, where the fog is shown there.
    """
    folder.forget_last_run()
    for path in (folder.cache, folder.gateway, folder.broker):
        path.mkdir(parents=True, exist_ok=True)
    rng = random.SystemRandom()
    broker_port = free_port(rng, frozenset({options.port}))
    redis_port = free_port(rng, frozenset({options.port, broker_port}))
    redis_password = secrets.token_urlsafe(24)
    home = home_prefix(config, folder)
    credentials = load_or_create_credentials(
        folder.broker / "credentials.json",
        nodes=[device.id for device in config.devices],
        gateways=[GATEWAY_ID],
        clients=[CLIENT_ID],
        homes=[] if home is None else [HOME_ASSISTANT_USER],
    )
    users = {CLIENT_ID: folder.client_url}
    if home is None:
        folder.home_assistant_url.unlink(missing_ok=True)
    else:
        users[HOME_ASSISTANT_USER] = folder.home_assistant_url
    for user, path in users.items():
        address = BrokerAddress(LOOPBACK, broker_port, user, credentials[user].password)
        write_private(path, address.url + "\n")
    wires: dict[str, int] = {}
    if options.chaos:
        taken = {options.port, broker_port, redis_port}
        for device in config.devices:
            wires[device.id] = free_port(rng, frozenset({*taken, *wires.values()}))
    redis_config = write_redis_config(folder.redis, redis_port, redis_password)
    return ServicePlan(
        config=config,
        state=folder,
        model=model.source,
        model_name=options.model_name or model.name,
        gateway_port=options.port,
        broker_port=broker_port,
        redis_port=redis_port,
        redis_password=redis_password,
        redis_argv=(str(find_redis_server()), str(redis_config)),
        passwords={user: credential.password for user, credential in credentials.items()},
        base_environ=os.environ,
        weights=options.weights,
        wires=wires,
        home=home,
        # A gateway with keys asks `up` for one too. Without, a key would close it to all.
        admin_key=secrets.token_urlsafe(24) if folder.api_keys.is_file() else None,
    )


def home_prefix(config: FogConfig, folder: StateFolder) -> str | None:
    """Return under which prefix the broker lets the gateway show the fog in Home Assistant.

    Also the one of the last run, when the fog is not to be shown any more: the gateway takes
    back what it showed.
    """
    from gateway.home.remembrance import Remembrance

    before = Remembrance(folder.gateway).recall()
    return config.gateway.get("home_assistant") or (before.prefix if before is not None else None)

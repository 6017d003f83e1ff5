"""Settings of the gateway, from the environment with the prefix ``E2LLM_GATEWAY_``."""

from __future__ import annotations

import ipaddress
import logging
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from broker.address import BrokerAddress
from broker.architecture import KV_FORMATS, KV_TRANSFERS, WEIGHT_FORMATS
from broker.logs import LogFormat
from broker.topics import check_home_prefix, check_level
from gateway.access.keys import given_key
from gateway.routing import Policy

PREFIX: Final = "E2LLM_GATEWAY_"
DEFAULT_ID: Final = "gateway-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a gateway is told at its start.

    Attributes:
        broker: ``mqtt://user:password@host:port`` of the MQTT broker.
        model: A model folder, a GGUF file, or a hub id such as ``owner/name`` or
            ``owner/name:file.gguf``.
        state: Folder for checksums and the key of the weights server.
        site: First level of all topics.
        redis: URL of Redis for the journal and for sharing prompts over MQTT with other gateways;
            without it requests are not journalled.
        log: Level of logging.
        log_format: text, or json: one object a line, with ids of requests as fields.
        id: Of this gateway, unique in the site; default the broker's user, which it must
            equal, because the broker's ACL lets a gateway publish only under its own name.
        host: Address to listen on. One that other machines reach needs API keys, unless
            ``allow_open`` says that something else keeps strangers out.
        allow_open: Whether whoever reaches the gateway may use it while there are no keys. As
            soon as there is one, every request needs one, whatever this says.
        admin_key: An API key with the scope admin, of 20 characters or more, beside those that
            are made with ``e2llm key create``; best in the file that
            E2LLM_GATEWAY_ADMIN_KEY_FILE names.
        public_url: Under which nodes reach this gateway; follows from host and port.
        joins: Folder ``joins`` in the state folder of ``python -m broker`` on this machine, by
            which devices that join become its users. None: no device can join here.
        public_broker: mqtt://host:port under which devices that join find the broker; follows from
            E2LLM_BROKER, or, where that is this machine, from how they reach the gateway.
        advertise: Tell the local networks of this gateway by mDNS, so that
            ``e2llm node join`` finds it; needs ``pip install 'e2llm[mdns]'``.
        model_name: That clients use; default the hub id or the folder's name.
        weights: Format in which nodes hold weights: float32, bfloat16, int8 or int4.
        kv_format: Format of the KV cache: float32 or bfloat16.
        kv_transfer: How KV travels between replicas: exact, or int8 for slow links, which changes
            answers slightly.
        policy: Which replicas a request goes to: ``least-added``, ``least-finish`` or ``jsq``
            (`gateway.routing.Policy`).
        prefix_cache: Whether nodes keep the KV of prompts for later ones that begin alike.
        queue_limit: Requests that may wait; beyond it 429.
        prompts_per_client: Requests over MQTT that one client may have open; beyond it 429.
            With 0 this gateway takes none.
        max_choices: Choices (``n`` times prompts) of one request.
        max_body_bytes: Longest body; beyond it 413. Over MQTT the broker's limit counts too.
        deadline_seconds: After which a request fails; None: never.
        home_assistant: Prefix of Home Assistant's discovery, usually ``homeassistant``: the fog and
            its devices are shown there. The broker must be told the same with
            ``--home-assistant``. None: they are not shown, and what was is taken back.
        keep_alive_seconds: Silence after which a stream gets a comment.
        url_seconds: How long the URLs of weights are good; renewed at half of it.
    """

    broker: str
    model: str
    state: Path
    site: str = "local"
    redis: str | None = None
    log: str = "INFO"
    log_format: LogFormat = LogFormat.TEXT
    id: str = ""
    host: str = "127.0.0.1"
    port: int = 8080
    allow_open: bool = False
    admin_key: str | None = field(default=None, repr=False)
    public_url: str | None = None
    joins: Path | None = None
    public_broker: str | None = None
    advertise: bool = False
    model_name: str | None = None
    weights: str = "float32"
    kv_format: str = "float32"
    kv_transfer: str = "exact"
    policy: Policy = Policy.LEAST_ADDED
    prefix_cache: bool = True
    queue_limit: int = 256
    prompts_per_client: int = 16
    max_choices: int = 16
    max_body_bytes: int = 4 * 1024 * 1024
    deadline_seconds: float | None = None
    home_assistant: str | None = None
    keep_alive_seconds: float = 15.0
    url_seconds: int = 3600

    def __post_init__(self) -> None:
        user = self.address.username
        if self.id and user and self.id != user:
            raise ValueError(
                f"id is {self.id!r}, but the user in E2LLM_BROKER is {user!r}; they must be equal"
            )
        check_level(self.site)
        check_level(self.gateway_id)
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port {self.port} is not in 1..65535")
        if self.admin_key is not None:
            given_key(self.admin_key)
        if self.home_assistant is not None:
            try:
                check_home_prefix(self.home_assistant)
            except ValueError as error:
                raise ValueError(f"home_assistant: {error}") from error
        if self.public_broker is not None:
            try:
                BrokerAddress.parse(self.public_broker)
            except ValueError as error:
                raise ValueError(f"public_broker: {error}") from error
        if self.advertise and is_loopback(self.host):
            raise ValueError(f"advertise: nobody else reaches host {self.host}")
        for name, known in (
            ("weights", WEIGHT_FORMATS),
            ("kv_format", KV_FORMATS),
            ("kv_transfer", KV_TRANSFERS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; known: {', '.join(known)}")
        for name in ("queue_limit", "max_choices", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.prompts_per_client < 0:
            raise ValueError("prompts_per_client must be at least 0")
        for name in ("deadline_seconds", "keep_alive_seconds", "url_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be greater than 0")
        if self.log.upper() not in logging.getLevelNamesMapping():
            raise ValueError(f"log level {self.log!r} is unknown; use DEBUG, INFO or WARNING")

    @property
    def address(self) -> BrokerAddress:
        """The broker and the credential for it."""
        return BrokerAddress.parse(self.broker)

    @property
    def gateway_id(self) -> str:
        """The name of this gateway on the bus."""
        return self.id or self.address.username or DEFAULT_ID

    @property
    def may_be_open(self) -> bool:
        """Whether the gateway may be used without a key while there is none."""
        return self.allow_open or is_loopback(self.host)

    @property
    def shares_folder(self) -> bool:
        """Whether nodes may read the model folder: on one machine, without a public address."""
        return self.public_url is None and is_loopback(self.host)

    @property
    def base_url(self) -> str:
        """The address under which others reach this gateway."""
        if self.public_url is not None:
            return self.public_url.rstrip("/")
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def is_address(host: str) -> bool:
    """Return whether ``host`` is an IP address, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

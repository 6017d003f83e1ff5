"""Who may publish and subscribe to what, decided by one table for every broker. Pure.

`rules` is the table. `mosquitto_acl` writes it out for Mosquitto, and the embedded broker
asks `is_allowed`. A sender stands in its topics under its own user name and may write no
other, so a receiver can believe the topic: the broker vouches for the sender.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Final

from broker.filters import covers
from broker.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_CONTROL,
    DEVICE_LOADED,
    DEVICE_PROFILE,
    DEVICE_STATUS,
    DEVICE_TELEMETRY,
    DEVICE_TENSORS,
    GATEWAY_EVENTS,
    GATEWAY_STATUS,
    HOME_CORDON,
    HOME_DEVICE,
    HOME_FOG,
    HOME_GATEWAY,
    MODEL,
    PLAN,
    PLAN_HISTORY,
    PLANNER_STATUS,
    PLANNER_USER,
    PREFIX,
    PROMPT,
    STAGE_CREDIT,
    STAGE_KV,
    STAGE_WORK,
    WHAT_IF,
    WHAT_IF_ANSWER,
    check_level,
    home_birth,
    home_discovery,
    node_inbox,
)

# As mosquitto_passwd writes it. More rounds would protect a password that can be guessed;
# ours have 192 random bits, and Mosquitto stands still while it computes.
_ROUNDS: Final = 101
_SALT_BYTES: Final = 12
_PASSWORD_BYTES: Final = 24

OWN: Final = "%u"
"""Stands for the user name in a rule, as in Mosquitto's patterns."""

# Also what keeps a name one line of an ACL file and one field of a password file.
_USER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]*")


class Kind(StrEnum):
    """What a user is; its rights follow from it."""

    PLANNER = "planner"
    GATEWAY = "gateway"
    NODE = "node"
    CLIENT = "client"
    HOME_ASSISTANT = "home-assistant"


class Action(StrEnum):
    """What a user wants with a topic."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True)
class Credential:
    """A user of the broker.

    Attributes:
        user: The id in topics: device id, gateway id, client name or ``planner``.
        password: Hidden in ``repr``.
        kind: Decides the rights.
    """

    user: str
    password: str = field(repr=False)
    kind: Kind

    def __post_init__(self) -> None:
        check_level(self.user)
        if not _USER.fullmatch(self.user):
            raise ValueError(
                f"user name {self.user!r}: use letters, digits and . _ @ -, "
                "and start with a letter or digit"
            )
        if not self.password or len(self.password) > 512 or not self.password.isprintable():
            raise ValueError(f"the password of {self.user} must have 1 to 512 printable characters")
        if (self.kind is Kind.PLANNER) != (self.user == PLANNER_USER):
            raise ValueError(
                f"user {self.user!r} cannot be a {self.kind}: the planner, and only the planner, "
                f"is called {PLANNER_USER!r}"
            )


@dataclass(frozen=True)
class Rule:
    """Users of a kind may do this with topics in the filter; `OWN` in it is their name."""

    kind: Kind
    action: Action
    filter: str


@cache
def rules(site: str, home: str | None = None) -> tuple[Rule, ...]:
    """Return everything that is allowed at ``site`` (design, section 3, "Who may").

    Args:
        site: First level of the topics.
        home: Prefix of Home Assistant's discovery; None: the fog is not shown there, and nobody
            has rights for it.
    """
    base = f"{PREFIX}/{check_level(site)}"
    all_devices = f"{base}/devices/#"
    counters = "$SYS/broker/#"
    table: dict[tuple[Kind, Action], tuple[str, ...]] = {
        (Kind.NODE, Action.WRITE): (
            *(topic.filter(site, sender=OWN) for topic in (STAGE_WORK, STAGE_KV, STAGE_CREDIT)),
            GATEWAY_EVENTS.filter(site, sender=OWN),
            DEVICE_STATUS.filter(site, device=OWN),
            DEVICE_PROFILE.filter(site, device=OWN),
            DEVICE_TELEMETRY.filter(site, device=OWN),
            DEVICE_LOADED.filter(site, device=OWN),
            DEVICE_TENSORS.filter(site, device=OWN),
        ),
        (Kind.NODE, Action.READ): (
            node_inbox(site, OWN),
            DEVICE_ASSIGNMENT.filter(site, device=OWN),
            # Its own, to say "ready" again when a late will says "lost".
            DEVICE_STATUS.filter(site, device=OWN),
            # Of all devices: what each hands on to the others.
            DEVICE_TENSORS.filter(site),
            PLAN.filter(site),
            MODEL.filter(site),
            GATEWAY_STATUS.filter(site),
            PLANNER_STATUS.filter(site),
        ),
        (Kind.PLANNER, Action.WRITE): (
            PLAN.filter(site),
            PLAN_HISTORY.filter(site),
            PLANNER_STATUS.filter(site),
            WHAT_IF_ANSWER.filter(site),
            DEVICE_ASSIGNMENT.filter(site),
            # To clear what a device that was removed for good has left behind.
            DEVICE_STATUS.filter(site),
            DEVICE_PROFILE.filter(site),
            DEVICE_LOADED.filter(site),
            DEVICE_TENSORS.filter(site),
        ),
        (Kind.PLANNER, Action.READ): (
            all_devices,
            # Its own: the next version follows the retained one, and an older planner's
            # status tells that there is one.
            PLAN.filter(site),
            PLAN_HISTORY.filter(site),
            PLANNER_STATUS.filter(site),
            MODEL.filter(site),
            GATEWAY_STATUS.filter(site),
            WHAT_IF.filter(site),
            counters,
        ),
        (Kind.GATEWAY, Action.WRITE): (
            STAGE_WORK.filter(site, sender=OWN),
            GATEWAY_STATUS.filter(site, gateway=OWN),
            WHAT_IF.filter(site, gateway=OWN),
            DEVICE_CONTROL.filter(site),
            MODEL.filter(site),
            f"{base}/replies/#",
        ),
        (Kind.GATEWAY, Action.READ): (
            PLAN.filter(site),
            PLAN_HISTORY.filter(site),
            PLANNER_STATUS.filter(site),
            all_devices,
            MODEL.filter(site),
            GATEWAY_STATUS.filter(site),
            WHAT_IF_ANSWER.filter(site, gateway=OWN),
            f"{base}/gateways/{OWN}/from/#",
            f"{base}/prompts/#",
            counters,
        ),
        (Kind.CLIENT, Action.WRITE): (
            PROMPT.filter(site, client=OWN),
            # A thermometer or a power meter may report for the device it is named after.
            DEVICE_TELEMETRY.filter(site, device=OWN),
        ),
        (Kind.CLIENT, Action.READ): (f"{base}/replies/{OWN}/#",),
    }
    found = [
        Rule(kind, action, text) for (kind, action), filters in table.items() for text in filters
    ]
    return (*found, *(() if home is None else _home_rules(site, home)))


def _home_rules(site: str, home: str) -> Iterable[Rule]:
    """Yield what gateways and Home Assistant need so that the fog is shown there."""
    shown = [topic.filter(site) for topic in (HOME_FOG, HOME_DEVICE, HOME_GATEWAY)]
    # Below its own level, so that no gateway touches what other programs announce.
    discovery, birth, cordon = home_discovery(home, site, "+"), home_birth(home), HOME_CORDON
    gateway, assistant = Kind.GATEWAY, Kind.HOME_ASSISTANT
    for text in (*shown, discovery):
        yield Rule(gateway, Action.WRITE, text)
    for text in (*shown, discovery, birth, cordon.filter(site)):
        yield Rule(gateway, Action.READ, text)
    for text in (birth, cordon.filter(site)):
        yield Rule(assistant, Action.WRITE, text)
    # The states of devices and gateways are their last wills as well.
    for text in (*shown, f"{home}/#", DEVICE_STATUS.filter(site), GATEWAY_STATUS.filter(site)):
        yield Rule(assistant, Action.READ, text)


def is_allowed(
    user: str, kind: Kind, action: Action, topic: str, site: str, home: str | None = None
) -> bool:
    """Whether the user may do this with ``topic``: a topic, or a filter to subscribe to.

    A filter is allowed when one rule covers all of it; so nobody subscribes to more than
    its own, not even to see nothing.
    """
    return any(
        rule.kind is kind and rule.action is action and covers(_for_user(rule, user), topic)
        for rule in rules(site, home)
    )


def generate_password() -> str:
    """Return a random password of 32 characters that need no escaping in a URL."""
    return secrets.token_urlsafe(_PASSWORD_BYTES)


def mosquitto_password_line(credential: Credential, salt: bytes | None = None) -> str:
    """Return the user's line of a Mosquitto password file: ``user:$7$rounds$salt$hash``.

    Args:
        credential: User and password.
        salt: Random when not given.

    ``$7$`` is PBKDF2 with HMAC-SHA512, salt and hash in base64 (mosquitto_passwd(1)).
    """
    if salt is None:
        salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", credential.password.encode(), salt, _ROUNDS)
    texts = [base64.b64encode(part).decode() for part in (salt, digest)]
    return f"{credential.user}:$7${_ROUNDS}${texts[0]}${texts[1]}"


def mosquitto_acl(site: str, credentials: Iterable[Credential], home: str | None = None) -> str:
    """Return Mosquitto's ACL file: one block of rules per user, see `rules`.

    Not its ``pattern`` lines: those hold for all users alike, and a client would have the
    rights of a node under its own name.
    """
    lines = [f"# Who may do what at site {site}. Generated from broker/access.py.", ""]
    for credential in sorted(credentials, key=lambda each: (each.kind, each.user)):
        lines += [f"# {credential.kind}", f"user {credential.user}"]
        lines += [
            f"topic {rule.action} {_for_user(rule, credential.user)}"
            for rule in rules(site, home)
            if rule.kind is credential.kind
        ]
        lines.append("")
    return "\n".join(lines)


def _for_user(rule: Rule, user: str) -> str:
    return rule.filter.replace(OWN, user)

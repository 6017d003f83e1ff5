"""Which devices serve which model, where several are in use. Pure.

Each model gets a group of devices of its own, so that each group is planned as a fog of one model.
Groups stay as they are while nothing calls for others: a device that joins goes to the model that
is served worst, and all are shared anew when models come or go, when a group cannot hold its
model, or when what is asked of the models has another proportion than they were shared for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Final

from broker.identity import ModelIdentity, identity
from broker.placement import kv_reserved_tokens
from broker.plan import Plan
from planner.model import DeviceSpec, ModelSpec

_MOST_SPLITS: Final = 5_000
"""Ways to share devices that are compared one by one; with more, devices are dealt out."""

_ALIKE: Final = 1.2
"""Groups that differ less in strength count alike: it is a bound, not a plan."""

DRIFT: Final = 2.0
"""Factor by which a model's share of the requests changes before devices are shared anew."""


@dataclass(frozen=True)
class Claim:
    """What one model asks of the fog.

    Attributes:
        devices: As they measured themselves for it.
        share: Of all requests.
        context_tokens: Longest prompt plus answer of a request.
    """

    model: ModelSpec
    devices: Mapping[str, DeviceSpec]
    share: float
    context_tokens: int

    def strength(self, group: Iterable[str]) -> float:
        """Return how much of its share a group can serve, 0 where it cannot hold the model.

        Tokens per second of devices that each compute a part of the model: an upper bound that
        orders groups well enough; each of them is planned exactly afterwards.
        """
        found = [self._abilities[name] for name in group if name in self._abilities]
        if sum(layers for layers, _ in found) < self.model.num_layers:
            return 0.0
        return sum(rate for _, rate in found) / self.share

    def rate(self, name: str) -> float:
        """Return the tokens per second that a device would reach with the whole model."""
        return self._abilities[name][1] if name in self._abilities else 0.0

    @cached_property
    def _abilities(self) -> dict[str, tuple[int, float]]:
        """How many blocks each device could hold, ends left aside, and its rate."""
        model, tokens = self.model, kv_reserved_tokens(self.context_tokens)
        ends = (model.embedding_bytes + model.head_bytes) / max(len(self.devices), 1)
        each = max(model.block_bytes) + tokens * max(model.kv_bytes)
        found = {}
        for name, device in self.devices.items():
            seconds = sum(device.blocks[kind].decode[0].seconds for kind in model.block_kinds)
            layers = max(int((device.memory_bytes - ends) // each), 0)
            found[name] = min(layers, model.num_layers), 1 / max(seconds, 1e-12)
        return found


def groups(
    claims: Sequence[Claim], current: Plan | None, *, is_stuck: bool = False
) -> dict[ModelIdentity, set[str]]:
    """Return the devices of each model.

    Args:
        claims: Of all models in use.
        current: Where the fog is on its way to, or is.
        is_stuck: A model found no plan on its group.
    """
    devices = sorted({name for claim in claims for name in claim.devices})
    if len(claims) == 1:
        return {identity(claims[0].model): set(devices)}
    holders = _holders(claims, current)
    is_served = current is not None and all(current.part_for(claim.model) for claim in claims)
    if not is_served or is_stuck or (current is not None and _has_drifted(claims, current)):
        return _named(claims, share(claims, holders))
    found: list[list[str]] = [[] for _ in claims]
    for name in devices:
        if name in holders:
            found[holders[name]].append(name)
    for name in devices:
        if name not in holders:
            worst = min(range(len(claims)), key=lambda i: (claims[i].strength(found[i]), i))
            found[worst].append(name)
    return _named(claims, found)


def share(claims: Sequence[Claim], holders: Mapping[str, int]) -> list[list[str]]:
    """Return the devices of each claim: the model that is served worst is served best.

    Args:
        claims: Of all models.
        holders: Which claim a device serves already; of equal ways the one that moves least.
    """
    devices = sorted({name for claim in claims for name in claim.devices})
    if len(claims) ** len(devices) > _MOST_SPLITS:
        return _dealt(claims, devices)

    def cost(owners: Sequence[int]) -> tuple[float, ...]:
        found = _split(claims, devices, owners)
        strengths = [claim.strength(group) for claim, group in zip(claims, found, strict=True)]
        moved = sum(holders.get(name, i) != i for name, i in zip(devices, owners, strict=True))
        num_served, least = sum(strength > 0 for strength in strengths), min(strengths)
        # What is about as good is not worth a move.
        level = round(math.log(least) / math.log(_ALIKE)) if least else 0
        return -num_served, -level, moved, -least

    return _split(claims, devices, min(product(range(len(claims)), repeat=len(devices)), key=cost))


def _dealt(claims: Sequence[Claim], devices: Sequence[str]) -> list[list[str]]:
    """Deal the strongest devices first, each to the model that is served worst so far."""
    found: list[list[str]] = [[] for _ in claims]

    def strongest(name: str) -> float:
        return -max(claim.rate(name) for claim in claims)

    for name in sorted(devices, key=strongest):
        worst = min(
            range(len(claims)),
            key=lambda i: (
                claims[i].strength(found[i]),
                sum(claims[i].rate(each) for each in found[i]) / claims[i].share,
                i,
            ),
        )
        found[worst].append(name)
    return found


def _split(
    claims: Sequence[Claim], devices: Sequence[str], owners: Sequence[int]
) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in claims]
    for name, owner in zip(devices, owners, strict=True):
        found[owner].append(name)
    return found


def _holders(claims: Sequence[Claim], current: Plan | None) -> dict[str, int]:
    """Return which claim each device belongs to by the plan, those that it leaves idle included."""
    found: dict[str, int] = {}
    for number, claim in enumerate(claims):
        part = None if current is None else current.part_for(claim.model)
        if part is not None:
            found |= dict.fromkeys(part.reasons, number)
    return found


def _has_drifted(claims: Sequence[Claim], current: Plan) -> bool:
    for claim in claims:
        part = current.part_for(claim.model)
        if part is not None and part.share:
            ratio = claim.share / part.share
            if max(ratio, 1 / ratio) > DRIFT:
                return True
    return False


def _named(
    claims: Sequence[Claim], found: Sequence[Sequence[str]]
) -> dict[ModelIdentity, set[str]]:
    return {identity(c.model): set(group) for c, group in zip(claims, found, strict=True)}

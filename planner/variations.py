"""Plans near a plan: one replica in another role, one device in another place. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from broker.plan import Role
from planner.groupings.search import GroupTable
from planner.masks import members_of
from planner.model import Roles
from planner.owner import ROLES
from planner.performance import Member
from planner.roles import WORST, Score, score


def in_other_roles(table: GroupTable, members: Sequence[Member]) -> Iterator[tuple[Member, ...]]:
    """Yield the plans that can serve and differ in one replica's role."""
    for index, member in enumerate(members):
        for role in ROLES:
            found = None if role is member.role else _member(table, _group(member), role)
            if found is not None:
                changed = (*members[:index], found, *members[index + 1 :])
                if _is_complete(changed):
                    yield changed


def is_allowed(table: GroupTable, members: Sequence[Member]) -> bool:
    """Whether the devices' owners allow every replica its role."""
    return all(_member(table, _group(member), member.role) is not None for member in members)


def in_other_groups(
    table: GroupTable, members: Sequence[Member], number: int
) -> list[tuple[Member, ...]]:
    """Return plans that differ in the place of one device, or of two that change places.

    A device moves to another replica, becomes idle, or becomes a replica of its own. There
    are about N (N + R) such plans of N devices and R replicas; returned are those that the
    analytic objective likes most, half of them by requests per second, half by the time of a
    lone request, since at light load only that counts.

    Args:
        table: What groups are worth.
        members: The plan.
        number: At most so many are returned.
    """
    found: dict[frozenset[tuple[Role, int]], tuple[Score, tuple[Member, ...]]] = {}
    for changed in _regrouped(table, members):
        value = score(changed, table.workload, Roles.MIXED)
        if value < WORST:
            key = frozenset((member.role, _group(member)) for member in changed)
            found.setdefault(key, (value, changed))
    near = list(found.values())
    by_rate = sorted(near, key=lambda entry: entry[0])[: (number + 1) // 2]
    rest = [entry for entry in near if entry not in by_rate]
    by_latency = sorted(rest, key=lambda entry: entry[0].latency_seconds)[: number // 2]
    return [changed for _, changed in (*by_rate, *by_latency)]


def _regrouped(table: GroupTable, members: Sequence[Member]) -> Iterator[tuple[Member, ...]]:
    groups = [_group(member) for member in members]
    idle = (1 << table.num_devices) - 1 - sum(groups)
    roles = [member.role for member in members]
    # The last place is for idle devices.
    places = [*groups, idle]
    home = {device: place for place, group in enumerate(places) for device in members_of(group)}
    for device, here in home.items():
        bit = 1 << device
        for target in range(len(places)):
            if target != here:
                moved = list(places)
                moved[here] ^= bit
                moved[target] ^= bit
                yield _plan(table, moved[:-1], roles)
        if places[here] != bit or here == len(groups):
            moved = list(places)
            moved[here] ^= bit
            for role in ROLES:
                yield _plan(table, [*moved[:-1], bit], [*roles, role])
    for one, other in combinations(home, 2):
        if home[one] != home[other]:
            both = 1 << one | 1 << other
            moved = list(places)
            moved[home[one]] ^= both
            moved[home[other]] ^= both
            yield _plan(table, moved[:-1], roles)


def _plan(table: GroupTable, groups: Sequence[int], roles: Sequence[Role]) -> tuple[Member, ...]:
    """Return the replicas of groups.

    Devices are idle that cannot hold the model together, or whose owners do not allow the role.
    """
    made = (_member(table, group, role) for group, role in zip(groups, roles, strict=True))
    return tuple(member for member in made if member is not None)


def _member(table: GroupTable, group: int, role: Role) -> Member | None:
    options = table.options(group) if group else None
    if options is None or role not in options.roles:
        return None
    return Member(role, getattr(options, role.value))


def _group(member: Member) -> int:
    return sum(1 << device for device in member.performance.devices)


def _is_complete(members: Sequence[Member]) -> bool:
    roles = {member.role for member in members}
    return Role.BOTH in roles or roles >= {Role.PREFILL, Role.DECODE}

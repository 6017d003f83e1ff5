"""Groups of devices as bit masks. Pure."""

from __future__ import annotations


def members_of(group: int) -> list[int]:
    """Return the devices of a bit mask."""
    members = []
    while group:
        lowest = group & -group
        members.append(lowest.bit_length() - 1)
        group ^= lowest
    return members

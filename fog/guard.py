"""Ends the children of a supervisor that died without stopping them.

Run as a script of its own (``python -I -S guard.py``), standard library only. The
supervisor holds the other end of standard input and writes ``+<pgid>`` for every process
group that it starts and ``-<pgid>`` for every one that ended. The kernel closes that pipe
however the supervisor dies, SIGKILL included, and unlike Linux's parent-death signal this
also reaches grandchildren, gives them time to say goodbye, and works on macOS.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable

GRACE_SECONDS = 5.0


def read_groups(lines: Iterable[str]) -> set[int]:
    """Return the groups that are still running when the lines end."""
    groups: set[int] = set()
    for line in lines:
        if line.endswith("\n") and line[1:].strip().isdigit():
            group = int(line[1:])
            if line[0] == "+":
                groups.add(group)
            else:
                groups.discard(group)
    return groups


def signal_groups(groups: Iterable[int], number: int) -> set[int]:
    """Send a signal to every group and return those that still exist."""
    alive = set()
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            alive.add(group)
    return alive


def main() -> None:
    """Wait for the end of standard input, then end what is left: TERM, grace, KILL."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups = signal_groups(read_groups(sys.stdin), signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while groups and time.monotonic() < deadline:
        time.sleep(0.05)
        groups = signal_groups(groups, 0)
    signal_groups(groups, signal.SIGKILL)


if __name__ == "__main__":
    main()

"""Whether a fog that changes keeps its promises: how soon it plans again, and what that costs.

    python -m benchmarks.live [--part NAME ...] [--json FILE]

Runs the default fog of `e2llm up`, its devices emulated by processes of their own, under 16
streamed answers at once, and compares every answer with the one that is given when nothing
happens. Each part prints its figures and whether its promises are kept; with ``--json`` they
replace those of the same parts in that file. What a fog serves after a change is compared with
a fog that was started as it became, in the same run.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from benchmarks import live_changes, live_limits
from benchmarks.here import context
from benchmarks.live_parts import Found, Lab

PARTS: Final[Mapping[str, Callable[[Lab], Found]]] = {
    "noise": live_changes.noise,
    "slow": live_changes.slow,
    "switch": live_changes.switch,
    "grow": live_changes.grow,
    "flood": live_limits.flood,
    "broker": live_limits.mosquitto,
    "embedded-broker": live_limits.embedded,
}


def main() -> int:
    """Run the parts; 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    # So that the processes of a fog end with this one.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    report = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    is_kept = True
    with tempfile.TemporaryDirectory(prefix="e2llm-live-") as folder:
        lab = Lab(Path(folder))
        for name in options.part or PARTS:
            print(f"== {name}", flush=True)
            found = PARTS[name](lab)
            is_kept = is_kept and found.is_kept
            print(found.text(), flush=True)
            report[name] = {**context(), **found.as_json()}
            if options.json:
                options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())

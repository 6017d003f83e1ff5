"""``chaos.toml``: which faults come when, and under which load. Text in, frozen values out. Pure.

streams = 16
[[fault]]
at = "5 s"
kind = "freeze"
target = "decode"
lasts = "8 s"

[random]            # in place of, or beside, a list
count = 20
every = "12 s"
kinds = ["kill", "freeze", "cut"]
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from fog.quantities import parse_seconds, suggest
from fog.tomllines import KeyPath
from fog.tomlreader import ConfigError, TomlReader, parse_toml, read_text

SERVICES: Final = ("broker", "redis", "planner", "gateway")
ROLES: Final = ("prefill", "decode", "master", "idle", "any")
"""Targets that are looked up in the plan when their time comes."""


class Kind(StrEnum):
    """What happens to a process or a device."""

    KILL = "kill"
    """SIGKILL; whoever keeps the process starts it again."""
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT after a while: it holds its connections and says nothing."""
    CUT = "cut"
    """Nothing passes the device's link, and neither end is told."""
    SLOW = "slow"
    """It computes so many times slower."""
    LINK = "link"
    """Its link has so many times less of its rate."""


DEFAULT_LASTS: Final[Mapping[Kind, float]] = {
    Kind.KILL: 0.0,
    Kind.FREEZE: 10.0,
    Kind.CUT: 10.0,
    Kind.SLOW: 20.0,
    Kind.LINK: 20.0,
}
DEFAULT_TIMES: Final[Mapping[Kind, float]] = {Kind.SLOW: 4.0, Kind.LINK: 10.0}
DEVICES_ONLY: Final = (Kind.CUT, Kind.SLOW, Kind.LINK)
"""What services cannot suffer, and devices only under ``e2llm up --chaos``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that happens.

    Attributes:
        at_seconds: From the beginning of the load.
        target: A device, a service, or one of `ROLES`.
        lasts_seconds: Until it is undone; 0 for what undoes itself.
        times: How many times slower.
    """

    at_seconds: float
    kind: Kind
    target: str
    lasts_seconds: float = 0.0
    times: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A whole run.

    Attributes:
        seed: Of what is drawn: targets, random faults, prompts.
        streams: Answers that are streamed at once.
        num_answers: Different answers, each known from before the faults.
        max_tokens: Length of each.
        sampled: Share of the answers that are drawn, not greedy.
        settle_seconds: Load after the last fault has been undone.
        faults: By time.
    """

    seed: int = 1
    streams: int = 16
    num_answers: int = 16
    max_tokens: int = 120
    sampled: float = 0.5
    settle_seconds: float = 15.0
    faults: tuple[Fault, ...] = ()

    @property
    def seconds(self) -> float:
        """Length of the load."""
        ends = [fault.at_seconds + fault.lasts_seconds for fault in self.faults]
        return max(ends, default=0.0) + self.settle_seconds


def load_scenario(path: Path, *, seed: int | None = None) -> Scenario:
    """Read and check a scenario.

    Args:
        path: The file.
        seed: Used in place of the file's.

    Raises:
        ConfigError: It names file, line and key.
    """
    return parse_scenario(read_text(path), path, seed=seed)


def parse_scenario(text: str, path: Path, *, seed: int | None = None) -> Scenario:
    """Parse the text of a scenario; see `load_scenario`."""
    reader, values = parse_toml(text, path)
    known = ("seed", "streams", "answers", "max_tokens", "sampled", "warm_up", "settle")
    reader.check_keys((), values, (*known, "fault", "random"))
    own_seed = reader.read((), values, "seed", _whole(0, 2**32), default=1)
    used_seed = own_seed if seed is None else seed
    warm_up = reader.read((), values, "warm_up", parse_seconds, default=5.0)
    raw = values.get("fault", [])
    if not isinstance(raw, list) or not all(isinstance(fault, dict) for fault in raw):
        reader.fail(("fault",), "write each fault as its own [[fault]] table")
    faults = [_fault(reader, ("fault", number), fault) for number, fault in enumerate(raw)]
    if "random" in values:
        faults += _random_faults(reader, values["random"], random.Random(used_seed), warm_up)
    scenario = Scenario(
        seed=used_seed,
        streams=reader.read((), values, "streams", _whole(1, 256), default=16),
        num_answers=reader.read((), values, "answers", _whole(1, 10_000), default=16),
        max_tokens=reader.read((), values, "max_tokens", _whole(1, 100_000), default=120),
        sampled=reader.read((), values, "sampled", _share, default=0.5),
        settle_seconds=reader.read((), values, "settle", parse_seconds, default=15.0),
        faults=tuple(sorted(faults, key=lambda fault: fault.at_seconds)),
    )
    if not faults:
        reader.fail((), "has no fault; add [[fault]] tables or a [random] table")
    return scenario


def check_targets(scenario: Scenario, devices: Collection[str]) -> None:
    """Return if every target can be found in a fog of these devices.

    Raises:
        ConfigError: One is neither a device nor a service nor one of `ROLES`.
    """
    known = [*devices, *SERVICES, *ROLES]
    for fault in scenario.faults:
        if fault.target not in known:
            raise ConfigError(
                f"target {fault.target!r} of the scenario is no device of this fog, no service "
                f"and no role{suggest(fault.target, known)}"
            )


def _fault(reader: TomlReader, at: KeyPath, raw: dict[str, Any]) -> Fault:
    reader.check_keys(at, raw, ("at", "kind", "target", "lasts", "times"))
    kind = reader.read(at, raw, "kind", _kind)
    target = reader.read(at, raw, "target", _text)
    if target in SERVICES and kind in DEVICES_ONLY:
        reader.fail(
            (*at, "target"), f"{kind.value!r} happens to devices; {target} can be killed or frozen"
        )
    for key, kinds in (("times", DEFAULT_TIMES), ("lasts", _that_last())):
        if key in raw and kind not in kinds:
            reader.fail((*at, key), f"means nothing for {kind.value!r}")
    return Fault(
        at_seconds=reader.read(at, raw, "at", parse_seconds),
        kind=kind,
        target=target,
        lasts_seconds=reader.read(at, raw, "lasts", parse_seconds, default=DEFAULT_LASTS[kind]),
        times=reader.read(at, raw, "times", _times, default=DEFAULT_TIMES.get(kind, 1.0)),
    )


def _random_faults(
    reader: TomlReader, raw: object, rng: random.Random, warm_up: float
) -> list[Fault]:
    at: KeyPath = ("random",)
    if not isinstance(raw, dict):
        reader.fail(at, "write what is drawn as a table [random]")
    reader.check_keys(at, raw, ("count", "every", "kinds", "targets", "pairs"))
    count = reader.read(at, raw, "count", _whole(1, 100_000))
    every = reader.read(at, raw, "every", parse_seconds)
    kinds = reader.read(at, raw, "kinds", _list_of(_kind), default=list(Kind))
    targets = reader.read(at, raw, "targets", _list_of(_text), default=["any", *SERVICES])
    pairs = reader.read(at, raw, "pairs", _share, default=0.1)
    return draw_faults(rng, count, every, warm_up, kinds, targets, pairs)


def draw_faults(
    rng: random.Random,
    count: int,
    every_seconds: float,
    first_seconds: float,
    kinds: Sequence[Kind],
    targets: Sequence[str],
    pairs: float,
) -> list[Fault]:
    """Draw faults that come one after the other, some two at once.

    Args:
        rng: Draws.
        count: Of faults, those in pairs counted each.
        every_seconds: Mean gap; drawn from half of it to one and a half.
        first_seconds: When the first comes.
        kinds: What each is drawn from.
        targets: Whom.
        pairs: Share of the times at which two come.
    """
    faults: list[Fault] = []
    at = first_seconds
    while len(faults) < count:
        for _ in range(2 if rng.random() < pairs and len(faults) + 2 <= count else 1):
            kind = rng.choice(kinds)
            target = rng.choice(
                [t for t in targets if t not in SERVICES or kind not in DEVICES_ONLY] or ["any"]
            )
            # What lasts as long as always finds the fog in the same state each time.
            lasts = DEFAULT_LASTS[kind] * rng.uniform(0.3, 1.0)
            times = DEFAULT_TIMES.get(kind, 1.0)
            faults.append(
                Fault(
                    at_seconds=round(at, 3),
                    kind=kind,
                    target=target,
                    lasts_seconds=round(lasts, 3),
                    times=times,
                )
            )
        at += every_seconds * rng.uniform(0.5, 1.5)
    return faults


def _that_last() -> Collection[Kind]:
    return [kind for kind, seconds in DEFAULT_LASTS.items() if seconds]


def _kind(value: object) -> Kind:
    try:
        return Kind(str(value))
    except ValueError:
        known = [kind.value for kind in Kind]
        raise ValueError(f"{value!r} is no kind of fault{suggest(str(value), known)}") from None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(
            f"must be a device, one of {', '.join(SERVICES)}, or one of {', '.join(ROLES)}, "
            f"not {value!r}"
        )
    return value


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"must be a number from 0 to 1, not {value!r}")
    return float(value)


def _times(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 < value < 1e6:
        raise ValueError(f"must be a number above 1 (4 means four times slower), not {value!r}")
    return float(value)


def _whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {value!r}")
        return value

    return parse


def _list_of(parse: Callable[[object], Any]) -> Callable[[object], list[Any]]:
    def parse_list(value: object) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise ValueError(f"must be a list that is not empty, not {value!r}")
        return [parse(item) for item in value]

    return parse_list

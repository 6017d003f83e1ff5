"""What a device is like now, from its telemetry: as levels, and whether it must rest. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Final

from broker.control import USUAL_LINK_BYTES_PER_SECOND, Link
from broker.telemetry import Telemetry
from planner.live.levels import Level, Rule

# A millisecond more makes few plans better, and on a busy host no link is measured that well:
# what a message to oneself takes longer is then the host's doing.
_LEAST_LATENCY: Final = 2e-3
_MOST_RATE: Final = USUAL_LINK_BYTES_PER_SECOND
"""Of a faster link the rate counts that was found at the start."""
SPEED: Final = Rule(threshold=0.25, seconds=4.0)
CORES: Final = Rule(threshold=0.25, seconds=60.0)
_LEAST_CORES: Final = 0.01
_REST_WINDOW_SECONDS: Final = 30.0
_CHARGED: Final = 0.1
"""A device on its battery comes back when it has so much more charge than the limit."""
_COOL_CELSIUS: Final = 10.0
_OTHER_RULES: Final = {
    # Messages wait behind others now and then; a link that has changed is off by far.
    "latency": Rule(threshold=1.0, seconds=4.0),
    "rate": Rule(threshold=1.0, seconds=4.0),
    "room": Rule(threshold=0.15, seconds=3.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """From when on a device has changed, or is left alone.

    Attributes:
        speed: How far and how long its speed must be off.
        cores: The same of time that it waits for a core.
        battery: Charge below which it rests unless it is charging.
        heat_celsius: Temperature above which it rests.
        rest_seconds: Least time of a rest from heat.
    """

    speed: Rule = SPEED
    cores: Rule = CORES
    battery: float = 0.15
    heat_celsius: float = 95.0
    rest_seconds: float = 300.0

    def rule(self, quantity: str) -> Rule:
        """Return the rule of one of a condition's levels."""
        return {"speed": self.speed, "cores": self.cores, **_OTHER_RULES}[quantity]


@dataclass(frozen=True, slots=True)
class Rest:
    """Why a device is left alone for a while, in words, and since when."""

    reason: str
    since_seconds: float


@dataclass(frozen=True, slots=True)
class Condition:
    """What a device is like now.

    Attributes:
        levels: Name of a quantity to its level: ``speed`` (1 is as measured), ``cores``
            (share of its time in which it had a core when it wanted one), ``latency``,
            ``rate`` and, where it says so, ``room`` (bytes for the model).
        heat: Temperatures of the last half minute, with their time.
        charge: The same of the battery.
        hot: Set while it rests from heat.
        empty: Set while its battery rests.
    """

    levels: Mapping[str, Level] = field(default_factory=dict)
    heat: tuple[tuple[float, float], ...] = ()
    charge: tuple[tuple[float, float], ...] = ()
    hot: Rest | None = None
    empty: Rest | None = None

    @classmethod
    def planned(cls, speed: float) -> Condition:
        """Return the condition of a device with which a plan was made, before any reading."""
        return cls({"speed": Level(speed)})

    @property
    def speed(self) -> float:
        """Speed now over the one that the device measured of itself."""
        return self._value("speed", 1.0) * self._value("cores", 1.0)

    @property
    def rest(self) -> Rest | None:
        """Why nothing may be placed on the device."""
        return self.hot or self.empty

    def link(self, measured: Link) -> Link:
        """Return the device's link, of which it measured ``measured`` at its start."""
        known = _readings(Telemetry(), measured)
        latency = self._value("latency", known["latency"])
        rate = self._value("rate", known["rate"])
        # What did not change is as exact as it was measured.
        return Link(
            latency_seconds=measured.latency_seconds if latency == known["latency"] else latency,
            bytes_per_second=measured.bytes_per_second if rate == known["rate"] else rate,
        )

    def memory_bytes(self, offered: int) -> int:
        """Return what the device has for the model: its offer, or less when that is gone."""
        room = self.levels.get("room")
        return offered if room is None else min(offered, int(room.value))

    def after(self, telemetry: Telemetry, link: Link, now: float, limits: Limits) -> Condition:
        """Return the condition after one more look at a device's latest telemetry.

        What it does not say is as it was measured: silence reads as absence.
        """
        readings = _readings(telemetry, link)
        usual = _readings(Telemetry(), link)
        levels = dict(self.levels)
        for name, reading in readings.items():
            known = levels.get(name) or Level(usual.get(name, reading))
            levels[name] = known.after(reading, now, limits.rule(name))
        heat = _window(self.heat, telemetry.temperature_celsius, now)
        charge = _window(self.charge, telemetry.battery_ratio, now)
        return replace(
            self,
            levels=levels,
            heat=heat,
            charge=charge,
            hot=_after_heat(self.hot, _median(heat), now, limits),
            empty=_after_charge(
                self.empty, _median(charge), bool(telemetry.is_charging), now, limits
            ),
        )

    def _value(self, name: str, default: float) -> float:
        level = self.levels.get(name)
        return default if level is None else level.value


def _readings(telemetry: Telemetry, link: Link) -> dict[str, float]:
    latency, rate = telemetry.link_latency_seconds, telemetry.link_bytes_per_second
    readings = {
        "speed": 1.0 if telemetry.speed_ratio is None else telemetry.speed_ratio,
        "cores": max(1.0 - (telemetry.core_wait_ratio or 0.0), _LEAST_CORES),
        "latency": max(link.latency_seconds if latency is None else latency, _LEAST_LATENCY),
        "rate": min(link.bytes_per_second if rate is None else rate, _MOST_RATE),
    }
    if telemetry.memory_available_bytes is not None:
        room = telemetry.memory_available_bytes + (telemetry.memory_used_bytes or 0)
        readings["room"] = float(max(room, 1))
    return readings


def _window(
    seen: tuple[tuple[float, float], ...], reading: float | None, now: float
) -> tuple[tuple[float, float], ...]:
    kept = tuple(entry for entry in seen if now - entry[0] < _REST_WINDOW_SECONDS)
    return kept if reading is None else (*kept, (now, reading))


def _median(seen: tuple[tuple[float, float], ...]) -> float | None:
    """Return the median over the window; None until it is half full."""
    if not seen or seen[-1][0] - seen[0][0] < _REST_WINDOW_SECONDS / 2:
        return None
    return median(reading for _, reading in seen)


def _after_heat(
    rest: Rest | None, celsius: float | None, now: float, limits: Limits
) -> Rest | None:
    if celsius is None:
        # A device that stopped saying how hot it is may be as hot as before.
        over = rest is not None and now - rest.since_seconds >= limits.rest_seconds
        return None if over else rest
    if rest is None and celsius > limits.heat_celsius:
        return Rest(f"it is at {celsius:.0f} °C, the limit is {limits.heat_celsius:g} °C", now)
    is_cool = celsius < limits.heat_celsius - _COOL_CELSIUS
    if rest is not None and is_cool and now - rest.since_seconds >= limits.rest_seconds:
        return None
    return rest


def _after_charge(
    rest: Rest | None, charge: float | None, is_charging: bool, now: float, limits: Limits
) -> Rest | None:
    if is_charging:
        return None
    if charge is None:
        return rest
    if rest is None and charge < limits.battery:
        return Rest(f"its battery is at {charge:.0%}, the limit is {limits.battery:.0%}", now)
    return None if charge >= limits.battery + _CHARGED else rest

"""What a fog file may tell planner and gateway: their own settings, less what `up` sets.

Their settings classes are asked, so that a mistake is found before anything is started,
and so that nothing has to be listed twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from broker.settings import SettingsError, read_settings

_SET_BY_UP: Final = frozenset(
    {"broker", "site", "redis", "log", "id", "host", "port", "public_url", "allow_open", "state"}
    | {"admin_key", "joins", "public_broker", "advertise", "model", "model_name", "expect_devices"}
)

# Required ones, with values that only stand in: `up` gives the real ones later.
_STAND_INS: Final = {
    "E2LLM_BROKER": "mqtt://127.0.0.1",
    "E2LLM_GATEWAY_MODEL": "model",
    "E2LLM_GATEWAY_STATE": "state",
}


@dataclass(frozen=True, slots=True)
class Settable:
    """The settings of one process that a fog file may give.

    Attributes:
        prefix: Of the variables.
        settings: Class of the settings, for `broker.settings.read_settings`.
    """

    prefix: str
    settings: type[object]

    @property
    def names(self) -> frozenset[str]:
        """The keys that are allowed."""
        assert dataclasses.is_dataclass(self.settings)
        return frozenset(f.name for f in dataclasses.fields(self.settings)) - _SET_BY_UP

    def problem(self, values: Mapping[str, str]) -> str | None:
        """Return what the process would say against these values together, or None."""
        stand_ins = {
            key: value
            for key, value in _STAND_INS.items()
            if key == "E2LLM_BROKER" or key.startswith(self.prefix)
        }
        given = {self.prefix + key.upper(): value for key, value in values.items()}
        try:
            read_settings(self.settings, self.prefix, stand_ins | given)
        except SettingsError as error:
            return str(error)
        return None


def planner_settable() -> Settable:
    """Return what the table ``[planner]`` may hold."""
    from planner.live.settings import PlannerSettings

    return Settable("E2LLM_PLANNER_", PlannerSettings)


def gateway_settable() -> Settable:
    """Return what the table ``[gateway]`` may hold."""
    from gateway.settings import PREFIX, Settings

    return Settable(PREFIX, Settings)

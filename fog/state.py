"""The folder in which one local fog keeps its state, and the lock on it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class StateError(Exception):
    """The state folder cannot be used. The message says why, and the remedy."""


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Where a fog keeps logs, credentials, broker and Redis data, and measurements."""

    path: Path

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.path / "logs"

    @property
    def broker(self) -> Path:
        """Credentials, ACL and data of the MQTT broker."""
        return self.path / "broker"

    @property
    def joins(self) -> Path:
        """By which devices that join become users of the broker; see `broker.joining`."""
        return self.broker / "joins"

    @property
    def client_url(self) -> Path:
        """The broker's address with the credential for a person's own programs."""
        return self.path / "mqtt-url"

    @property
    def home_assistant_url(self) -> Path:
        """The broker's address with the credential for Home Assistant, where it shows the fog."""
        return self.path / "home-assistant-url"

    @property
    def redis(self) -> Path:
        """Data of the Redis server; emptied at every start."""
        return self.path / "redis"

    @property
    def cache(self) -> Path:
        """Measured profiles and downloads, shared by all devices; survives restarts."""
        return self.path / "cache"

    @property
    def processes(self) -> Path:
        """Process ids by name, as JSON; written while a fog runs."""
        return self.path / "processes.json"

    @property
    def conditions(self) -> Path:
        """What devices suffer now; see `broker.conditions`."""
        return self.path / "conditions.json"

    @property
    def gateway(self) -> Path:
        """What the gateway remembers."""
        return self.path / "gateway"

    @property
    def api_keys(self) -> Path:
        """The API keys of the gateway, hashed; there is no file before the first is made."""
        return self.gateway / "keys.json"

    def device(self, device_id: str) -> Path:
        """What one device remembers."""
        return self.path / "nodes" / device_id

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the kernel lets go however the process ends.

        Raises:
            StateError: Another fog runs on it, or it cannot be written.
        """
        try:
            # Credentials and answers lie here: for this user only.
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StateError(
                f"the state folder {self.path} cannot be used ({error.strerror}); "
                "choose another with --state DIR"
            ) from error
        with os.fdopen(descriptor, "r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = lock.read().strip() or "unknown"
                raise StateError(
                    f"another fog (process {owner}) already runs on the state folder "
                    f"{self.path}. Stop it, or start this one with its own --port, or --state DIR"
                ) from error
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def forget_last_run(self) -> None:
        """Remove what must not outlive a run: telemetry of old devices, models that were added."""
        shutil.rmtree(self.redis, ignore_errors=True)
        self.conditions.unlink(missing_ok=True)
        (self.gateway / "models.json").unlink(missing_ok=True)
        self.processes.unlink(missing_ok=True)


def default_state(port: int, environ: Mapping[str, str]) -> StateFolder:
    """Return the folder of the fog on ``port``, as the XDG base directory standard has it."""
    base = environ.get("XDG_STATE_HOME", "")
    # The standard: a relative path is invalid and must be ignored.
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".local" / "state"
    return StateFolder(root / "e2llm" / str(port))

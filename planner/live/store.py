"""Telemetry and the planner's memory in Redis; the only module of the planner that uses it.

Keys, for other writers and readers (``<site>`` is E2LLM_SITE):

- ``e2llm:<site>:device:<device>:telemetry``, a string: the latest telemetry of a device, a
  JSON object with the fields of `broker.control.Telemetry`. It expires; silence reads as
  absence. Anybody may write it: ``SET ... '{"speed_ratio": 0.25}' EX 30``. Fields of another
  writer go before those that the device sends over MQTT for as long as the value lives;
  the planner's own values say ``"source":"mqtt"`` and never replace another writer's. A
  value without expiry is given one.
- ``e2llm:<site>:telemetry``, a stream: history (``device``, ``telemetry``), about the last
  ten thousand entries.
- ``e2llm:<site>:plan``, a hash: ``version`` and ``plan`` (JSON) of the last plan.
- ``e2llm:<site>:plans``, a stream: the planner's decisions, about the last thousand, in words
  (``decision``) and as JSON (``record``, a `broker.plan.PlanDecision`).
- ``e2llm:<site>:planner:lease``, a string: the session of the planner that may publish.

Redis is memory, never authority: without it telemetry is kept here, and `look` says so with
a lease of None. Nothing beyond Redis 7.0 is used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker.codec import encode_control
from broker.plan import Plan
from broker.telemetry import Faults, Telemetry, complaint, parse_telemetry, valid_telemetry
from planner.live.events import StoreSeen
from planner.live.history import Decided

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 2.0
_HISTORY_LENGTH: Final = 10_000
_DECISIONS_LENGTH: Final = 1_000
_OURS: Final = '"source":"mqtt"'

# Set ours unless the value is another writer's, in one step: a value that somebody writes
# between a look and an answer must not be lost. Returns the other writer's value.
_PUT_TELEMETRY: Final = """
local held = redis.call('GET', KEYS[1])
if held and not string.find(held, ARGV[3], 1, true) then
  if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
  return held
end
if ARGV[1] ~= '' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return false
"""
_TAKE_LEASE: Final = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_DROP_LEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


def telemetry_key(site: str, device: str) -> str:
    """Return the key of a device's latest telemetry."""
    return f"e2llm:{site}:device:{device}:telemetry"


class Store:
    """Latest telemetry per device, lease, last version and history.

    Args:
        client: Redis; None keeps everything in memory.
        site: The fog's name.
        session: Of this planner; what the lease holds.
        telemetry_seconds: Telemetry older than this is silence.
        lease_seconds: Life of the lease without renewal.
    """

    def __init__(
        self,
        client: redis.Redis | None,
        site: str,
        session: int,
        *,
        telemetry_seconds: float,
        lease_seconds: float,
    ) -> None:
        self.num_refused_fields = 0
        self._faults = Faults()
        self._client = client
        self._prefix = f"e2llm:{site}"
        self._site = site
        self._session = str(session)
        self._telemetry_seconds = telemetry_seconds
        self._lease_seconds = lease_seconds
        # Device to field to (value, when it turns into silence).
        self._fields: dict[str, dict[str, tuple[Any, float]]] = {}
        self._fresh: set[str] = set()
        self._foreign: dict[str, str] = {}
        self._foreign_until: dict[str, float] = {}
        self._try_again_seconds = 0.0
        self._was_up = True

    @classmethod
    def from_url(cls, url: str | None, site: str, session: int, **limits: float) -> Store:
        """Return a store for ``redis://:password@host:port/0``; connects at the first look."""
        client = None
        if url is not None:
            client = redis.Redis.from_url(
                url,
                decode_responses=True,
                socket_timeout=_TIMEOUT_SECONDS,
                socket_connect_timeout=_TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        return cls(client, site, session, **limits)

    def put(self, device: str, telemetry: Telemetry, now: float) -> None:
        """Remember what a device sent; the next `look` writes it."""
        fields = self._fields.setdefault(device, {})
        until = now + self._telemetry_seconds
        for name in Telemetry.__struct_fields__:
            value = getattr(telemetry, name)
            if value is not None:
                fields[name] = (value, until)
        self._fresh.add(device)

    def look(self, devices: Iterable[str], now: float) -> StoreSeen:
        """Renew the lease, write what came since the last look, and read all ``devices``."""
        names = sorted(set(devices))
        if self._client is None or now < self._try_again_seconds:
            return StoreSeen(None, 0, self._remembered(names, now), self.num_refused_fields)
        try:
            seen = self._look(self._client, names, now)
        except redis.RedisError as error:
            self._note_down(error, now)
            return StoreSeen(None, 0, self._remembered(names, now), self.num_refused_fields)
        if not self._was_up:
            logger.info("redis answers again")
        self._was_up = True
        return seen

    def _look(self, client: redis.Redis, names: list[str], now: float) -> StoreSeen:
        millis = int(self._telemetry_seconds * 1000)
        pipeline = client.pipeline(transaction=False)
        pipeline.eval(
            _TAKE_LEASE,
            1,
            f"{self._prefix}:planner:lease",
            self._session,
            str(int(self._lease_seconds * 1000)),
        )
        pipeline.hget(f"{self._prefix}:plan", "version")
        for name in names:
            text = self._json(name, now) if name in self._fresh else ""
            key = telemetry_key(self._site, name)
            pipeline.eval(_PUT_TELEMETRY, 1, key, text, str(millis), _OURS)
        for name in sorted(self._fresh):
            self._remember_history(pipeline, name, self._json(name, now))
        (
            lease,
            version,
            *held,
        ) = pipeline.execute()
        self._fresh.clear()
        for name, value in zip(names, held, strict=False):
            self._note_foreign(client, name, value, now)
        last = int(version) if isinstance(version, str) and version.isdecimal() else 0
        telemetry = self._remembered(names, now)
        return StoreSeen(bool(lease), last, telemetry, self.num_refused_fields)

    def _note_foreign(self, client: redis.Redis, name: str, value: Any, now: float) -> None:
        if not isinstance(value, str):
            self._foreign.pop(name, None)
            return
        # Should Redis go away now, the value is good for as long as any telemetry.
        self._foreign_until[name] = now + self._telemetry_seconds
        if self._foreign.get(name) == value:
            return
        self._foreign[name] = value
        _, refused = parse_telemetry(value)
        if refused:
            self.num_refused_fields += len(refused)
        if news := self._faults.news(name, refused):
            logger.warning("telemetry of %s in redis: %s", name, complaint(news))
        self._remember_history(client, name, value)

    def _remember_history(self, client: Any, name: str, text: str) -> None:
        client.xadd(
            f"{self._prefix}:telemetry",
            {"device": name, "telemetry": text},
            maxlen=_HISTORY_LENGTH,
            approximate=True,
        )

    def _remembered(self, names: Iterable[str], now: float) -> dict[str, Telemetry]:
        found: dict[str, Telemetry] = {}
        for name in names:
            values = self._current(name, now)
            foreign = self._foreign.get(name)
            if foreign is not None and now < self._foreign_until[name]:
                telemetry, _ = parse_telemetry(foreign)
                given = msgspec.structs.asdict(telemetry)
                values.update({key: value for key, value in given.items() if value is not None})
            if values:
                found[name], _ = valid_telemetry(values)
        return found

    def _current(self, name: str, now: float) -> dict[str, Any]:
        fields = self._fields.get(name, {})
        for field in [key for key, (_, until) in fields.items() if now >= until]:
            del fields[field]
        return {field: value for field, (value, _) in fields.items()}

    def _json(self, name: str, now: float) -> str:
        values = {**self._current(name, now), "source": "mqtt"}
        return msgspec.json.encode(values).decode()

    def record(self, plan: Plan | None, decisions: Iterable[Decided], now: float) -> None:
        """Write the last plan and what was decided; nothing without Redis."""
        if self._client is None or now < self._try_again_seconds:
            return
        try:
            pipeline = self._client.pipeline(transaction=False)
            if plan is not None:
                text = encode_control(plan).decode()
                fields = ["version", str(plan.version), "plan", text]
                pipeline.hset(f"{self._prefix}:plan", items=fields)
            for text, record in decisions:
                entry: dict[Any, Any] = {"decision": text}
                if record is not None:
                    entry["record"] = encode_control(record).decode()
                pipeline.xadd(
                    f"{self._prefix}:plans",
                    entry,
                    maxlen=_DECISIONS_LENGTH,
                    approximate=True,
                )
            pipeline.execute()
        except redis.RedisError as error:
            self._note_down(error, now)

    def close(self) -> None:
        """Give the lease back, so that another planner need not wait for its end."""
        if self._client is None:
            return
        try:
            self._client.eval(_DROP_LEASE, 1, f"{self._prefix}:planner:lease", self._session)
        except redis.RedisError:
            logger.debug("redis is gone; the lease ends by itself")
        self._client.close()

    def _note_down(self, error: redis.RedisError, now: float) -> None:
        self._try_again_seconds = now + _RETRY_SECONDS
        if self._was_up:
            logger.warning("redis does not answer, going on from memory: %s", error)
        self._was_up = False

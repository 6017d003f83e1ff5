"""Which gateway answers a client's prompts over MQTT, when several hear them. In Redis.

Every gateway of a site hears every prompt. The first to claim the client has all its prompts,
so that what it asks next, cancelling and its limits meet at one gateway; shared subscriptions
of MQTT 5 would spread them, and a broker of 3.1.1 has none. A claim lasts some seconds, and as
long as it is taken again. Redis is memory, never authority: without it a prompt is answered by
everybody who hears it.

Keys, for other readers: ``e2llm:<site>:prompts:<client>`` holds the id of a gateway and of
its run.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

CLAIM_SECONDS: Final = 6.0
RENEW_SECONDS: Final = 2.0
"""Time after which a claim in use is taken again."""
TIMEOUT_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 5.0
"""Time for which a Redis that did not answer is not asked."""

# In one step, so that of two gateways one has it, and nobody's claim ends while it is renewed.
_TAKE: Final = """
local owner = redis.call('get', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_GIVE_BACK: Final = """
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end
"""


class Claims(Protocol):
    """Who answers whom."""

    async def take(self, client: str) -> bool:
        """Claim a client, anew or again; whether this gateway is to answer it."""

    async def stop(self) -> None:
        """Give back what was claimed, and close what is open."""


class RedisClaims:
    """Claims in Redis.

    Args:
        url: ``redis://:password@host:port/0``.
        site: Part of every key.
        owner: This run of this gateway.
        now: A clock in seconds; replaced by tests.
    """

    def __init__(
        self, url: str, site: str, owner: str, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis: Redis = Redis.from_url(
            url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
        )
        self._take = self._redis.register_script(_TAKE)
        self._give_back = self._redis.register_script(_GIVE_BACK)
        self._claimed: dict[str, float] = {}
        self._prefix = f"e2llm:{site}:prompts:"
        self._owner = owner
        self._now = now
        self._silent_until = 0.0

    async def take(self, client: str) -> bool:
        if self._now() < self._silent_until:
            return True
        try:
            taken = await self._take(
                keys=[self._prefix + client], args=[self._owner, int(CLAIM_SECONDS * 1000)]
            )
        except (RedisError, OSError) as error:
            self._silent_until = self._now() + RETRY_SECONDS
            logger.warning(
                "Redis does not answer (%s): a prompt is answered by every gateway that takes it",
                error,
            )
            return True
        if taken:
            self._remember(client)
        return bool(taken)

    async def stop(self) -> None:
        with contextlib.suppress(RedisError, OSError):
            while self._claimed:
                client, _ = self._claimed.popitem()
                await self._give_back(keys=[self._prefix + client], args=[self._owner])
        with contextlib.suppress(RedisError, OSError):
            await self._redis.aclose()

    def _remember(self, client: str) -> None:
        """Keep the claims that may still hold; the dictionary's oldest is its first."""
        now = self._now()
        self._claimed.pop(client, None)
        self._claimed[client] = now
        for each, taken_at in list(self._claimed.items()):
            if now - taken_at <= CLAIM_SECONDS:
                break
            del self._claimed[each]

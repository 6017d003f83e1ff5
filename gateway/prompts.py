"""Inference over MQTT: prompts arrive on ``prompts/<client>``, answers on ``replies/<client>/``.

    mosquitto_sub -t 'e2llm/v1/local/replies/kitchen-display/#' &
    mosquitto_pub -t e2llm/v1/local/prompts/kitchen-display -m '{"messages": [...]}'

A thin shell around `gateway.inference`, as the HTTP routes are: the same bodies, checks,
limits, chunks and errors. `gateway.envelope` has what differs, docs/mqtt-api.md tells it to
users. The broker's ACL lets a client write only its own prompts and read only its own
replies, so the name in the topic is who asks.

It has a connection of its own: a long prompt must not hold up the tokens of others on the
engine's. Where several gateways hear the same prompts, `gateway.claims` says who answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from broker.limits import DEFAULT_MAX_PAYLOAD_BYTES
from broker.topics import PROMPT, REPLY
from broker.traffic import Traffic
from broker.transport import Properties, Publication, Received, Transport, TransportEvent
from gateway.access.caller import Visit, begin_visit, mqtt_caller
from gateway.claims import RENEW_SECONDS, Claims
from gateway.drops import Drops
from gateway.envelope import (
    EVERYTHING,
    ReplyTo,
    cancelled,
    cancelled_in,
    carrier_of,
    done_json,
    error_json,
    expired,
    expiry_of,
    form_of,
    is_name,
    make_request_id,
    name_in,
    read_message,
    reply_to,
)
from gateway.errors import ApiError, internal_error, stopping_error
from gateway.inference import Inference
from gateway.receiver import Receiver

logger = logging.getLogger(__name__)

_GARBAGE: Final = ("invalid_json", "request_too_large")
"""Codes that say more about a broken client than about a request."""


@dataclass(frozen=True, slots=True)
class _Running:
    task: asyncio.Task[None]
    digest: bytes


class Prompts:
    """Answers the prompts of a site.

    Args:
        transport: Whoever made it connects it, after `start`; closed by `stop`.
        site: First level of the topics.
        inference: What HTTP uses too.
        max_body_bytes: Longest prompt; the broker may allow less.
        per_client: Requests that one client may have open.
        claims: Who answers whom, of several gateways; closed by `stop`. None: this one does.
        max_payload_bytes: Longest message to a client; what the transport takes.

    Attributes:
        drops: Prompts that could not be read, by reason; those with a client that has a name
            got an error.
        refused: Other prompts that got an error, by its code.
    """

    def __init__(
        self,
        transport: Transport,
        site: str,
        inference: Inference,
        *,
        max_body_bytes: int,
        per_client: int,
        claims: Claims | None = None,
        max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
    ) -> None:
        self.drops = Drops()
        self.refused: Counter[str] = Counter()
        self._transport = transport
        self._site = site
        self._inference = inference
        self._max_body_bytes = max_body_bytes
        self._per_client = per_client
        self._claims = claims
        self._unclaimed: asyncio.Queue[Received] = asyncio.Queue()
        self._claiming: list[asyncio.Task[None]] = []
        self._max_payload_bytes = max_payload_bytes
        self._running: dict[str, dict[str, _Running]] = {}
        self._receiver = Receiver(transport, self._on_event, "gateway-prompts")
        self._is_stopping = False

    @property
    def traffic(self) -> Traffic:
        """What went over the connection for prompts."""
        return self._transport.traffic

    def start(self) -> None:
        """Subscribe, and begin to take prompts in."""
        self._transport.subscribe([(PROMPT.filter(self._site), PROMPT.qos)])
        self._receiver.start()
        if self._claims is not None:
            self._claiming = [
                asyncio.create_task(self._claim_each(self._claims)),
                asyncio.create_task(self._claim_again(self._claims)),
            ]

    async def stop(self) -> None:
        """End what runs with an error that says why, and close the transport."""
        self._is_stopping = True
        for task in self._claiming:
            task.cancel()
        await asyncio.gather(*self._claiming, return_exceptions=True)
        tasks = [each.task for running in self._running.values() for each in running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._receiver.stop()
        if self._claims is not None:
            await self._claims.stop()

    def details(self) -> dict[str, Any]:
        """Return what ``/readyz`` says about prompts over MQTT."""
        num_running = sum(len(running) for running in self._running.values())
        return {"running": num_running, "refused": dict(self.refused + self.drops.counts)}

    # --- in ----------------------------------------------------------------------------------

    def _on_event(self, event: TransportEvent) -> None:
        # The transport itself logs what becomes of the connection.
        if isinstance(event, Received):
            if self._claims is None:
                self._take(event)
            else:
                self._unclaimed.put_nowait(event)

    async def _claim_each(self, claims: Claims) -> None:
        """Take the messages of this gateway's clients in, one after the other."""
        # Asked too, not only cancelled: see `RedisJournal.stop` on Python 3.11.
        while not self._is_stopping:
            message = await self._unclaimed.get()
            client = _client_of(message)
            try:
                if client is None or await claims.take(client):
                    self._take(message)
            except Exception:
                # Of one message; those after it are taken in all the same.
                logger.exception("a message on %s could not be taken in", message.topic)

    async def _claim_again(self, claims: Claims) -> None:
        """Keep the clients whose requests run, for what they say next."""
        while not self._is_stopping:
            await asyncio.sleep(RENEW_SECONDS)
            for client in list(self._running):
                await claims.take(client)

    def _take(self, message: Received) -> None:
        client = _client_of(message)
        if client is None:
            self.drops.add(
                "invalid_client", message.topic, "its client cannot stand in a reply topic"
            )
            return
        if not message.payload:
            # Somebody clears a retained prompt (MQTT 3.1.1, 3.3.1.3).
            return
        if message.retained:
            # It would be answered again after every start of a gateway.
            self.drops.add("retained", message.topic, "publish prompts without the retain flag")
            return
        to = reply_to(self._site, client, make_request_id())
        try:
            to = reply_to(self._site, client, to.request_id, message.properties)
            content = read_message(message.payload, self._max_body_bytes)
            cancel = cancelled_in(content)
            if cancel is not None:
                self._cancel(client, cancel)
                return
            chosen = name_in(content, "request_id")
            if chosen is not None:
                if self._is_repeat(client, chosen, message.payload):
                    return
                to = reply_to(self._site, client, chosen, message.properties)
            expiry = expiry_of(content, message.properties)
            carrier = carrier_of(content, message.properties)
            self._begin(to, content, message.payload, expiry, carrier)
        except ApiError as error:
            if error.code in _GARBAGE:
                self.drops.add(error.code, message.topic, error.message)
                self._reply(to, error_json(error, to.request_id))
            else:
                self._refuse(to, error)

    def _is_repeat(self, client: str, request_id: str, payload: bytes) -> bool:
        """Return whether this prompt is being answered already; QoS 1 may bring it twice.

        Raises:
            ApiError: Another prompt has the id. It is answered under an id of its own: an
                error under this one would end the other in its reader's eyes.
        """
        known = self._running.get(client, {}).get(request_id)
        if known is not None and known.digest != _digest(payload):
            raise ApiError(
                409,
                f"request_id {request_id} is the id of a request that still runs; "
                "choose another, or cancel that one first",
                param="request_id",
                code="request_id_in_use",
            )
        return known is not None

    def _begin(
        self,
        to: ReplyTo,
        content: dict[str, Any],
        payload: bytes,
        expiry_seconds: float | None,
        carrier: dict[str, str],
    ) -> None:
        if self._is_stopping:
            raise stopping_error()
        num_running = len(self._running.get(to.client, {}))
        if num_running >= self._per_client:
            raise ApiError(
                429,
                f"client {to.client} has {num_running} requests open, at most {self._per_client} "
                "are allowed; wait for an answer, or cancel one",
                code="too_many_requests",
                kind="rate_limit_error",
            )
        visit = Visit(mqtt_caller(to.client), carrier=carrier)
        answer = self._answer(visit, to, content, len(payload), expiry_seconds)
        task = asyncio.create_task(answer)
        self._running.setdefault(to.client, {})[to.request_id] = _Running(task, _digest(payload))
        # Not in the task: one that is cancelled before it starts runs no line of its own.
        task.add_done_callback(partial(self._end, to))

    def _cancel(self, client: str, request_id: str) -> None:
        # An id that is not known belongs to a request that has just ended.
        for known_id, known in self._running.get(client, {}).items():
            if request_id in (known_id, EVERYTHING):
                known.task.cancel()

    # --- out ---------------------------------------------------------------------------------

    async def _answer(
        self,
        visit: Visit,
        to: ReplyTo,
        content: dict[str, Any],
        num_bytes: int,
        expiry_seconds: float | None,
    ) -> None:
        begin_visit(visit)
        try:
            async with asyncio.timeout(expiry_seconds) as limit:
                await self._generate(to, content, num_bytes)
        except TimeoutError:
            if expiry_seconds is None or not limit.expired():
                raise
            raise expired(expiry_seconds) from None

    async def _generate(self, to: ReplyTo, content: dict[str, Any], num_bytes: int) -> None:
        answer = await self._inference.begin(content, form_of(content), num_bytes)
        if not answer.is_streamed:
            self._reply(to, await answer.whole())
            return
        num_chunks = 0
        async with aclosing(answer.events()) as events:
            async for event in events:
                self._reply(to, event.data)
                num_chunks += 1
        self._reply(to, done_json(answer, to.request_id, num_chunks))

    def _end(self, to: ReplyTo, task: asyncio.Task[None]) -> None:
        running = self._running[to.client]
        del running[to.request_id]
        if not running:
            del self._running[to.client]
        if task.cancelled():
            reason = stopping_error() if self._is_stopping else cancelled()
            self._reply(to, error_json(reason, to.request_id))
        elif isinstance(error := task.exception(), ApiError):
            self._refuse(to, error)
        elif error is not None:
            logger.error("a request over MQTT failed", exc_info=error)
            self._refuse(to, internal_error())

    def _refuse(self, to: ReplyTo, error: ApiError) -> None:
        self.refused[error.code or ""] += 1
        self._reply(to, error_json(error, to.request_id))

    def _reply(self, to: ReplyTo, text: str) -> None:
        payload = text.encode()
        if len(payload) > self._max_payload_bytes:
            raise ApiError(
                500,
                f"the answer has {len(payload)} bytes, one message may have "
                f"{self._max_payload_bytes}; ask for a stream, for fewer choices, or without "
                "return_token_ids",
                code="reply_too_large",
                kind="server_error",
            )
        properties = Properties(correlation=to.correlation)
        self._transport.publish(Publication(to.topic, payload, REPLY.qos, properties=properties))


def _client_of(message: Received) -> str | None:
    """Return whose prompt this is; None if the name cannot stand in a reply topic."""
    names = PROMPT.match(message.topic)
    return names["client"] if names is not None and is_name(names["client"]) else None


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()

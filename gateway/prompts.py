"""Inference over MQTT: prompts arrive on ``prompts/<client>``, answers on ``replies/<client>/``.

    mosquitto_sub -t 'e2llm/v1/local/replies/kitchen-display/#' &
    mosquitto_pub -t e2llm/v1/local/prompts/kitchen-display -m '{"messages": [...]}'

A thin shell around `gateway.inference`, as the HTTP routes are: the same bodies, checks,
limits, chunks and errors. `gateway.envelope` has what differs, docs/mqtt-api.md tells it to
users. The broker's ACL lets a client write only its own prompts and read only its own
replies, so the name in the topic is who asks.

It has a connection of its own: a long prompt must not hold up the tokens of others on the
engine's. Every gateway that takes prompts answers all of them; a site with several gateways
lets one take them (``E2LLM_GATEWAY_PROMPTS_PER_CLIENT=0`` at the others).
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
from broker.transport import Publication, Received, Transport, TransportEvent
from gateway.access.caller import Visit, begin_visit, mqtt_caller
from gateway.drops import Drops
from gateway.envelope import (
    cancelled,
    done_json,
    error_json,
    form_of,
    is_name,
    make_request_id,
    name_in,
    read_message,
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
        max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
    ) -> None:
        self.drops = Drops()
        self.refused: Counter[str] = Counter()
        self._transport = transport
        self._site = site
        self._inference = inference
        self._max_body_bytes = max_body_bytes
        self._per_client = per_client
        self._max_payload_bytes = max_payload_bytes
        self._running: dict[str, dict[str, _Running]] = {}
        self._receiver = Receiver(transport, self._on_event, "gateway-prompts")
        self._is_stopping = False

    def start(self) -> None:
        """Subscribe, and begin to take prompts in."""
        self._transport.subscribe([(PROMPT.filter(self._site), PROMPT.qos)])
        self._receiver.start()

    async def stop(self) -> None:
        """End what runs with an error that says why, and close the transport."""
        self._is_stopping = True
        tasks = [each.task for running in self._running.values() for each in running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._receiver.stop()

    def details(self) -> dict[str, Any]:
        """Return what ``/readyz`` says about prompts over MQTT."""
        num_running = sum(len(running) for running in self._running.values())
        return {"running": num_running, "refused": dict(self.refused + self.drops.counts)}

    # --- in ----------------------------------------------------------------------------------

    def _on_event(self, event: TransportEvent) -> None:
        # The transport itself logs what becomes of the connection.
        if isinstance(event, Received):
            self._take(event)

    def _take(self, message: Received) -> None:
        names = PROMPT.match(message.topic)
        if names is None or not is_name(names["client"]):
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
        client, request_id = names["client"], make_request_id()
        try:
            content = read_message(message.payload, self._max_body_bytes)
            cancel = name_in(content, "cancel")
            if cancel is not None:
                self._cancel(client, cancel)
                return
            chosen = name_in(content, "request_id")
            if chosen is not None and self._is_repeat(client, chosen, message.payload):
                return
            request_id = chosen or request_id
            self._begin(client, request_id, content, message.payload)
        except ApiError as error:
            if error.code in _GARBAGE:
                self.drops.add(error.code, message.topic, error.message)
                self._reply(client, request_id, error_json(error, request_id))
            else:
                self._refuse(client, request_id, error)

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

    def _begin(self, client: str, request_id: str, content: dict[str, Any], payload: bytes) -> None:
        if self._is_stopping:
            raise stopping_error()
        num_running = len(self._running.get(client, {}))
        if num_running >= self._per_client:
            raise ApiError(
                429,
                f"client {client} has {num_running} requests open, at most {self._per_client} are "
                "allowed; wait for an answer, or cancel one",
                code="too_many_requests",
                kind="rate_limit_error",
            )
        task = asyncio.create_task(self._answer(client, request_id, content, len(payload)))
        self._running.setdefault(client, {})[request_id] = _Running(task, _digest(payload))
        # Not in the task: one that is cancelled before it starts runs no line of its own.
        task.add_done_callback(partial(self._end, client, request_id))

    def _cancel(self, client: str, request_id: str) -> None:
        # An id that is not known belongs to a request that has just ended.
        known = self._running.get(client, {}).get(request_id)
        if known is not None:
            known.task.cancel()

    # --- out ---------------------------------------------------------------------------------

    async def _answer(
        self, client: str, request_id: str, content: dict[str, Any], num_bytes: int
    ) -> None:
        begin_visit(Visit(mqtt_caller(client)))
        answer = await self._inference.begin(content, form_of(content), num_bytes)
        if not answer.is_streamed:
            self._reply(client, request_id, await answer.whole())
            return
        num_chunks = 0
        async with aclosing(answer.events()) as events:
            async for event in events:
                self._reply(client, request_id, event.data)
                num_chunks += 1
        self._reply(client, request_id, done_json(answer, request_id, num_chunks))

    def _end(self, client: str, request_id: str, task: asyncio.Task[None]) -> None:
        running = self._running[client]
        del running[request_id]
        if not running:
            del self._running[client]
        if task.cancelled():
            reason = stopping_error() if self._is_stopping else cancelled()
            self._reply(client, request_id, error_json(reason, request_id))
        elif isinstance(error := task.exception(), ApiError):
            self._refuse(client, request_id, error)
        elif error is not None:
            logger.error("a request over MQTT failed", exc_info=error)
            self._refuse(client, request_id, internal_error())

    def _refuse(self, client: str, request_id: str, error: ApiError) -> None:
        self.refused[error.code or ""] += 1
        self._reply(client, request_id, error_json(error, request_id))

    def _reply(self, client: str, request_id: str, text: str) -> None:
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
        topic = REPLY.path(self._site, client=client, request=request_id)
        self._transport.publish(Publication(topic, payload, REPLY.qos))


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()

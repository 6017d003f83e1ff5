"""A gateway's prompts over a fake engine, and one application, on a memory broker."""

import asyncio
import json
from typing import Any, Final

from broker.memory import MemoryBroker, MemoryTransport
from broker.topics import PROMPT, REPLY
from broker.transport import Properties, Publication, Received, Transport
from gateway.claims import Claims
from gateway.inference import Inference
from gateway.prompts import Prompts
from tests.support.bus import SITE
from tests.support.gateway_api import Api

ME: Final = "kitchen-display"
MAX_BODY: Final = 2000
MAX_PAYLOAD: Final = 3000
PER_CLIENT: Final = 3
CHAT: Final = {"messages": [{"role": "user", "content": "7 + 5?"}]}
PATIENCE_SECONDS: Final = 20
REPLIES: Final = f"e2llm/v1/{SITE}/replies/{ME}/"

Reply = tuple[str, dict[str, Any]]


def prompts_of(api: Api, transport: Transport, claims: Claims | None = None) -> Prompts:
    return Prompts(
        transport,
        SITE,
        Inference(api.engine, api.models, api.settings, api.meter, api.tracer),
        max_body_bytes=MAX_BODY,
        per_client=PER_CLIENT,
        claims=claims,
        max_payload_bytes=MAX_PAYLOAD,
    )


class Site:
    """A gateway's prompts and one application on a memory broker."""

    def __init__(
        self, api: Api, claims: Claims | None = None, broker: MemoryBroker | None = None
    ) -> None:
        self.api = api
        self.broker = broker or MemoryBroker()
        self.transport = MemoryTransport(self.broker, f"gateway-{id(self)}~prompts")
        self.prompts = prompts_of(api, self.transport, claims)
        self.client = MemoryTransport(self.broker, ME)
        self.client.subscribe([(f"{REPLIES}#", REPLY.qos)])

    def ask(
        self,
        message: dict[str, Any] | bytes,
        client: str = ME,
        retained: bool = False,
        **properties: Any,
    ) -> None:
        """Publish a prompt, with properties of MQTT 5."""
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        topic = PROMPT.path(SITE, client=client)
        publication = Publication(topic, payload, PROMPT.qos, retained, Properties(**properties))
        self.client.publish(publication)

    async def message(self) -> Received:
        """Return the next message to the application."""
        while True:
            event = await asyncio.to_thread(self.client.receive, PATIENCE_SECONDS)
            assert event is not None
            if isinstance(event, Received):
                return event

    async def reply(self) -> Reply:
        """Return the next message to the application: request id and content."""
        message = await self.message()
        names = REPLY.match(message.topic)
        assert names is not None
        return names["request"], json.loads(message.payload)

    async def replies(self) -> list[dict[str, Any]]:
        """Return the messages up to the one that says ``done``."""
        found: list[dict[str, Any]] = []
        while not found or not found[-1].get("done"):
            found.append((await self.reply())[1])
        return found

    async def error(self, message: dict[str, Any] | bytes) -> dict[str, Any]:
        """Ask what is refused; return what the application is told."""
        self.ask(message)
        request_id, content = await self.reply()
        assert content["request_id"] == request_id
        assert content["done"] is True
        return content

    def silence(self) -> list[Received]:
        """Return what has arrived meanwhile."""
        found = []
        while event := self.client.receive(0):
            found += [event] if isinstance(event, Received) else []
        return found

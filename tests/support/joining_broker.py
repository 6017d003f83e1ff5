"""`python -m broker` as a gateway sees it that lets devices join: answers in a folder."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.access import Credential
from broker.joining import JoinFolder, take_in


@asynccontextmanager
async def answering(
    joins: JoinFolder, users: dict[str, Credential]
) -> AsyncIterator[dict[str, Credential]]:
    """Answer requests while the block lasts; ``users`` are those of the broker, also afterwards."""

    async def answer() -> None:
        while True:
            after = take_in(joins, users, lambda known: None)
            users.clear()
            users.update(after)
            await asyncio.sleep(0.005)

    task = asyncio.create_task(answer())
    yield users
    task.cancel()

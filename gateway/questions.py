"""What-if questions of this gateway on their way to the planner and back."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

from broker.codec import encode_control
from broker.control import DeviceState
from broker.plan import PlannerStatus
from broker.topics import WHAT_IF
from broker.transport import Properties, Publication
from broker.whatif import WhatIf, WhatIfAnswer
from gateway.requests import DeadlineExceededError, NotReadyError

_MARGIN_SECONDS: Final = 5.0
"""What the planner may be busy with before it hears of a question."""
_RETRY_SECONDS: Final = 5


def new_question_id() -> str:
    """Return an id that no other question has."""
    return f"whatif-{secrets.token_hex(8)}"


class Questions:
    """One question at a time waits for its answer.

    Args:
        site: First level of the topics.
        gateway: Id of this gateway.
        publish: Hands a message to the broker.
        margin_seconds: Waited beyond what a question says.
    """

    def __init__(
        self,
        site: str,
        gateway: str,
        publish: Callable[[Publication], None],
        margin_seconds: float = _MARGIN_SECONDS,
    ) -> None:
        self._margin_seconds = margin_seconds
        self._path = WHAT_IF.path(site, gateway=gateway)
        self._publish = publish
        self._waiting: tuple[str, asyncio.Future[WhatIfAnswer]] | None = None

    async def ask(self, asked: WhatIf, planner: PlannerStatus | None) -> WhatIfAnswer:
        """Return what the planner answers.

        Raises:
            NotReadyError: There is no planner now, or it answers another question of ours.
            DeadlineExceededError: It did not answer in time.
        """
        if planner is None or planner.state is not DeviceState.READY:
            raise NotReadyError("no planner is there to ask", _RETRY_SECONDS)
        if self._waiting is not None:
            raise NotReadyError("the planner answers another question", _RETRY_SECONDS)
        future: asyncio.Future[WhatIfAnswer] = asyncio.get_running_loop().create_future()
        self._waiting = asked.request_id, future
        seconds = asked.wait_seconds + self._margin_seconds
        expiry = Properties(expiry_seconds=round(seconds))
        try:
            self._publish(
                Publication(self._path, encode_control(asked), WHAT_IF.qos, properties=expiry)
            )
            return await asyncio.wait_for(future, seconds)
        except TimeoutError:
            late = f"the planner did not answer within {seconds:g} s"
            raise DeadlineExceededError(late) from None
        finally:
            self._waiting = None

    def take(self, answer: WhatIfAnswer) -> None:
        """Give an answer to who waits for it; a late one is dropped."""
        if self._waiting is not None:
            request_id, future = self._waiting
            if request_id == answer.request_id and not future.done():
                future.set_result(answer)

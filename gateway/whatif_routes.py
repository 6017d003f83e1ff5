"""``POST /fog/what-if``: the plan of a fog that is not there. It needs the scope admin."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from broker.whatif import (
    LONGEST_WAIT_SECONDS,
    AddedDevice,
    Finding,
    WhatIf,
    WhatIfAnswer,
)
from gateway.bodies import Body, check_body, parse_object
from gateway.connection import read_body
from gateway.errors import ApiError, from_engine, invalid_value, not_ready
from gateway.openapi import body_of, errors
from gateway.questions import new_question_id
from gateway.requests import Engine, EngineError

_MAX_BODY_BYTES: Final = 16 * 1024
_RETRY_SECONDS: Final = 5
_Id = Annotated[str, Field(min_length=1, max_length=128)]


class Joining(Body):
    """A device that is supposed to join.

    Attributes:
        like: A device of the fog, or one of the catalogue (``e2llm catalogue``).
    """

    id: _Id
    like: _Id


class WhatIfRequest(Body):
    """What is supposed.

    Attributes:
        model: One in use; None: the first by name.
        drop: Devices that are gone.
        slow: Device to the factor on all its times.
        add: Devices that join.
        wait_seconds: Longest time for the plan.
    """

    model: str | None = None
    drop: list[_Id] = Field(default_factory=list)
    slow: dict[_Id, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    add: list[Joining] = Field(default_factory=list)
    wait_seconds: Annotated[float, Field(gt=0, le=LONGEST_WAIT_SECONDS)] = 30.0

    def question(self) -> WhatIf:
        """Return what the planner is asked.

        Raises:
            ApiError: A device is changed twice, or too many are changed.
        """
        try:
            return WhatIf(
                request_id=new_question_id(),
                wait_seconds=self.wait_seconds,
                model=self.model or "",
                drop=self.drop,
                slow=self.slow,
                add=[AddedDevice(id=each.id, like=each.like) for each in self.add],
            )
        except ValueError as error:
            raise invalid_value("add", str(error)) from error


async def asked_of_planner(engine: Engine, question: WhatIf) -> WhatIfAnswer:
    """Return the planner's answer, with a plan or with why there can be none.

    Raises:
        ApiError: 400 where the question makes no sense now, 503 where nobody can answer it now,
            504 where that takes too long.
    """
    try:
        answer = await engine.what_if(question)
    except EngineError as error:
        raise from_engine(error, "drop") from error
    match answer.finding:
        case Finding.REFUSED:
            raise invalid_value(answer.reason.partition(":")[0], answer.reason)
        case Finding.BUSY:
            raise not_ready(answer.reason, _RETRY_SECONDS)
        case Finding.FAILED:
            raise ApiError(504, answer.reason, code="deadline_exceeded", kind="server_error")
        case _:
            return answer


def answer_body(answer: WhatIfAnswer) -> dict[str, Any]:
    """Return the body of an answer: it names no question, since each has its own response."""
    body: dict[str, Any] = msgspec.to_builtins(answer)
    del body["request_id"]
    return body


def add_what_if_route(app: FastAPI, engine: Engine) -> None:
    """Add ``POST /fog/what-if``."""

    @app.post(
        "/fog/what-if", openapi_extra=body_of(WhatIfRequest), responses=errors(400, 413, 503, 504)
    )
    async def what_if(http: Request) -> JSONResponse:
        """Say what would be planned if devices were gone, slower, or more; nothing moves."""
        body = await read_body(http, _MAX_BODY_BYTES)
        question = check_body(parse_object(body), WhatIfRequest).question()
        return JSONResponse(answer_body(await asked_of_planner(engine, question)))

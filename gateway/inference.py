"""What chat and text completions have in common: from a JSON object to the answer's JSON.

HTTP and MQTT share this path; it knows neither.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic

from broker.identity import identity
from gateway.access.caller import current_visit
from gateway.answers import Chunk, Event
from gateway.errors import ApiError, from_engine, not_ready
from gateway.forms import CHAT, COMPLETION, Form, Pieces, RequestT
from gateway.grammar import plan_grammar
from gateway.meter import Meter
from gateway.model import ServedModel
from gateway.models import Models
from gateway.naming import RETRY_SECONDS, require_model
from gateway.parameters import Limits, plan_generations
from gateway.requests import (
    Engine,
    EngineError,
    Generation,
    JournalUnavailableError,
    TokenSource,
    Written,
)
from gateway.responses import Usage
from gateway.resumption import Resumed, check_model, continued, model_problem, parse_position
from gateway.schemas import check_request
from gateway.settings import Settings
from gateway.tracing.tracer import Asked, Traced, Tracer

# Longer texts are tokenised in a thread, so that other streams go on meanwhile.
_LONG_BODY_BYTES: Final = 16 * 1024


class Answer(Generic[RequestT]):
    """The answer to one request. Nothing is generated before it is read, as one or in chunks.

    Args:
        form: The kind of the request.
        request: Checked.
        head: What every answer and chunk begins with.
        generations: One per choice.
        pieces: What they bring, from the first token.
        seen: Tokens of each choice whose chunks the client has; they are left out.
    """

    def __init__(
        self,
        form: Form[RequestT],
        request: RequestT,
        head: dict[str, Any],
        generations: Sequence[Generation],
        pieces: Pieces,
        seen: Sequence[int] = (),
    ) -> None:
        self._form = form
        self._request = request
        self._head = head
        self._generations = generations
        self._pieces = pieces
        self._num_tokens = [0] * len(generations)
        self._num_cached = 0
        self._seen = tuple(seen) or (0,) * len(generations)
        self._finish_reasons: list[str | None] = [None] * len(generations)

    @property
    def id(self) -> str:
        """The id in the answer and in every chunk."""
        found: str = self._head["id"]
        return found

    @property
    def request(self) -> RequestT:
        """What was asked."""
        return self._request

    @property
    def head(self) -> dict[str, Any]:
        """What every answer and chunk begins with."""
        return self._head

    @property
    def is_streamed(self) -> bool:
        """Whether the client asked for chunks."""
        return bool(self._request.stream)

    @property
    def finish_reasons(self) -> list[str | None]:
        """Why each choice ended; None while it has not."""
        return self._finish_reasons

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        return Usage.of(self._generations, sum(self._num_tokens), self._num_cached)

    async def whole(self) -> str:
        """Return the JSON of the whole answer; `ApiError` when the fog failed."""
        form = self._form
        try:
            found = await form.collect(self._request, self._head, self._generations, self._pieces)
        except EngineError as error:
            raise from_engine(error, form.prompt_param) from error
        return found.json_text()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield each chunk, with an id to go on from; `ApiError` when the fog failed."""
        form = self._form
        stream = form.stream(self._request, self._head, self._generations, self._counted())
        try:
            async with aclosing(stream):
                async for chunk in stream:
                    if not self._is_seen(chunk):
                        yield Event(chunk.json, self._position_after(chunk), chunk.name)
        except EngineError as error:
            raise from_engine(error, form.prompt_param) from error

    def _is_seen(self, chunk: Chunk) -> bool:
        if chunk.choice is not None:
            return self._num_tokens[chunk.choice] <= self._seen[chunk.choice]
        return chunk.is_head and any(self._seen)

    def _position_after(self, chunk: Chunk) -> str | None:
        if chunk.choice is None:
            return None
        # A resumed stream that is behind with another choice must not say that it lacks
        # what the client has.
        have = map(max, self._num_tokens, self._seen)
        return ",".join(str(count) for count in have)

    async def _counted(self) -> Pieces:
        async with aclosing(self._pieces):
            async for piece in self._pieces:
                self._num_tokens[piece.choice] += 1
                self._num_cached += piece.cached_tokens
                self._finish_reasons[piece.choice] = piece.finish_reason
                yield piece


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the journal has of an answer.

    Attributes:
        head: Id, time of its beginning and model.
        status: ``running``, ``finished``, ``cancelled`` or ``failed``.
    """

    request: Any
    head: dict[str, Any]
    status: str


class Inference:
    """Begins answers to generation requests.

    Args:
        engine: Generates the tokens.
        models: That requests may name.
        settings: Limits.
        meter: Lets requests in, and counts what they cost; the same for HTTP and MQTT.
        tracer: Gives requests a trace; None: they have none.
    """

    def __init__(
        self,
        engine: Engine,
        models: Models,
        settings: Settings,
        meter: Meter | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._engine = engine
        self._models = models
        self._settings = settings
        self._meter = meter or Meter()
        self._tracer = tracer

    async def begin(
        self, content: dict[str, Any], form: Form[RequestT], num_bytes: int
    ) -> Answer[RequestT]:
        """Check a request and plan its answer.

        Args:
            content: The JSON object of the body.
            form: Its kind.
            num_bytes: Length of the body.

        Raises:
            ApiError: The request is wrong, over its caller's limits, or there is no model yet.
        """
        began_at = time.monotonic()
        request = check_request(content, form.request_type)
        answer_id = f"{form.id_prefix}-{secrets.token_hex(12)}"
        created = int(time.time())
        model = self.require(request.model)
        generations = await self._plan(
            request, model, form, num_bytes, answer_id, created, secrets.randbits(63)
        )
        entry = await self._meter.admit(current_visit(), answer_id, model.name, generations)
        source = self._source(form, model, began_at)
        pieces = form.pieces(source, request, model, generations)
        head = self._head(answer_id, created, model)
        return Answer(form, request, head, generations, self._meter.watch(entry, pieces))

    async def resume(
        self,
        answer_id: str,
        last_event_id: str | None,
        *,
        stream: bool | None = None,
        forms: Sequence[Form[Any]] = (CHAT, COMPLETION),
    ) -> Answer[Any]:
        """Go on with an answer that began over another connection.

        Args:
            answer_id: The id in the answer's chunks.
            last_event_id: Id of the last event that the client has; None: it has none.
            stream: Whether in chunks; None: as it was asked for.
            forms: Those that it may have.

        Raises:
            ApiError: It is not known (any more), the journal does not answer, the model is
                another one now, or the id is none of its events.
        """
        form = next((form for form in forms if form.has_id(answer_id)), None)
        with _readable_journal():
            first = await self._first(answer_id) if form is not None else None
            if form is None or first is None:
                raise ApiError(
                    404,
                    f"no request {answer_id[:80]!r}; what was asked is kept for an hour",
                    code="request_not_found",
                )
            return await self._resume(form, answer_id, first, last_event_id, stream)

    async def recall(self, answer_id: str, form: Form[RequestT]) -> Recalled | None:
        """Return what the journal has of an answer; None: nothing (any more).

        Raises:
            ApiError: The journal does not answer.
        """
        if not form.has_id(answer_id):
            return None
        with _readable_journal():
            first = await self._first(answer_id)
        if first is None:
            return None
        fields = first.fields
        head = {"id": answer_id, "created": int(fields["created"]), "model": fields["model"]}
        request = check_request(json.loads(fields["body"]), form.request_type)
        return Recalled(request, head, fields["status"])

    async def _first(self, answer_id: str) -> Written | None:
        """Return what the journal has of the first choice, if the caller may have it."""
        first = await self._engine.written(f"{answer_id}-0")
        if first is None or not current_visit().caller.may_read(first.fields.get("caller", "")):
            return None
        return first

    async def _resume(
        self,
        form: Form[RequestT],
        answer_id: str,
        first: Written,
        last_event_id: str | None,
        stream: bool | None,
    ) -> Answer[RequestT]:
        began_at, fields = time.monotonic(), first.fields
        content = json.loads(fields["body"])
        if stream is not None:
            content |= {"stream": stream}
            if not stream:
                content.pop("stream_options", None)
        request = check_request(content, form.request_type)
        created = int(fields["created"])
        model = self._began_with(first)
        planned = await self._plan(
            request, model, form, len(fields["body"]), answer_id, created, int(fields["seed"])
        )
        seen = parse_position(last_event_id, len(planned))
        entries = [each.request_id for each in planned]
        num_streams = await self._engine.take_over(entries)
        written = [await self._engine.written(entry) for entry in entries]
        generations = continued(planned, written, num_streams)
        entry = await self._meter.admit(current_visit(), answer_id, model.name, generations)
        source = Resumed(self._source(form, model, began_at))
        pieces = form.pieces(source, request, model, generations)
        num_known = sum(len(generation.generated) for generation in generations)
        head = self._head(answer_id, created, model)
        watched = self._meter.watch(entry, pieces, num_known)
        return Answer(form, request, head, generations, watched, seen)

    def _source(self, form: Form[RequestT], model: ServedModel, began_at: float) -> TokenSource:
        """Return where the tokens come from, with a trace where requests get one."""
        if self._tracer is None:
            return self._engine
        asked = Asked(form.operation, model.name, current_visit().carrier, began_at)
        return Traced(self._engine, self._tracer, asked)

    def require(self, asked: str | None) -> ServedModel:
        """Return the model that a request gets.

        Raises:
            ApiError: There is none yet, or none of that name that new requests may have.
        """
        return require_model(self._models, self._engine, asked)

    def named(self) -> list[ServedModel]:
        """Return the models that requests may name, first the one for those that name none."""
        return self._models.named(self._engine)

    def _began_with(self, first: Written) -> ServedModel:
        """Return the model that an answer began with, as long as the fog has it.

        Raises:
            ApiError: It has another one now.
        """
        plan, named = self._engine.active_plan(), self.named()
        for model in self._models.of_revision(first.fields["revision"]):
            is_held = plan is not None and plan.part_for(model.manifest) is not None
            if (is_held or model in named) and model_problem(first, model) is None:
                return model
        model = self.require(None)
        check_model(first, model)
        return model

    async def _plan(
        self,
        request: RequestT,
        model: ServedModel,
        form: Form[RequestT],
        num_bytes: int,
        answer_id: str,
        created: int,
        drawn_seed: int,
    ) -> list[Generation]:
        if num_bytes > _LONG_BODY_BYTES:
            prompts = await asyncio.to_thread(form.encode, request, model)
        else:
            prompts = form.encode(request, model)
        return plan_generations(
            request,
            prompts,
            model,
            self._limits(model),
            answer_id=answer_id,
            created=created,
            prompt_param=form.prompt_param,
            default_max_tokens=form.default_max_tokens,
            drawn_seed=drawn_seed,
            caller=current_visit().caller.id,
            grammar=await plan_grammar(request, form.tools(request, model), model),
        )

    def _head(self, answer_id: str, created: int, model: ServedModel) -> dict[str, Any]:
        return {
            "id": answer_id,
            "created": created,
            "model": model.name,
            "system_fingerprint": model.fingerprint(
                self._engine.arithmetics(identity(model.manifest))
            ),
        }

    def _limits(self, model: ServedModel) -> Limits:
        largest = self._engine.largest_request_tokens(identity(model.manifest))
        context = model.context_tokens
        return Limits(
            context_tokens=context if largest is None else min(context, largest),
            max_choices=self._settings.max_choices,
            deadline_seconds=self._settings.deadline_seconds,
        )


@contextmanager
def _readable_journal() -> Iterator[None]:
    try:
        yield
    except JournalUnavailableError as error:
        raise not_ready(f"the journal cannot be read: {error}", RETRY_SECONDS) from error

"""Prepares the models of a gateway, publishes them, and takes back those that were removed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from broker.control import ModelManifest
from gateway.model import ModelRefusedError, ServedModel
from gateway.models import Model, Models
from gateway.requests import Engine
from gateway.weights import UrlSigner, with_urls

logger = logging.getLogger(__name__)

Prepare = Callable[[Model], Awaitable[ServedModel]]


class Keeper:
    """Brings the bus to what `Models` says.

    Args:
        prepare: Fills a model's slot, however long that takes.
        url_seconds: How long URLs of weights are good; renewed at half of it.
    """

    def __init__(
        self,
        models: Models,
        engine: Engine,
        signer: UrlSigner,
        prepare: Prepare,
        url_seconds: int,
    ) -> None:
        self._models = models
        self._engine = engine
        self._signer = signer
        self._prepare = prepare
        self._url_seconds = url_seconds
        self._tasks: dict[Model, asyncio.Task[None]] = {}
        self._published: dict[str, tuple[ModelManifest, float]] = {}

    def expect(self) -> None:
        """Leave on the bus what a gateway before this one published of these models."""
        self._engine.expect_models(each.name for each in self._models if each.refused is None)

    async def run(self) -> None:
        """Never returns.

        Raises:
            ModelRefusedError: No model is left to use.
        """
        try:
            while True:
                self._models.changed.clear()
                self._begin()
                self._publish()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._models.changed.wait(), self._pause_seconds())
                for model, task in list(self._tasks.items()):
                    if task.done():
                        del self._tasks[model]
                        task.result()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _begin(self) -> None:
        for model in self._models:
            if model.served is None and model.refused is None and model not in self._tasks:
                self._tasks[model] = asyncio.create_task(self._fill(model), name=model.name)
        for model in self._tasks.keys() - set(self._models):
            self._tasks.pop(model).cancel()

    async def _fill(self, model: Model) -> None:
        try:
            served = await self._prepare(model)
            same = self._models.same_as(model, served)
            if same is not None:
                raise ModelRefusedError(f"{model.settings.model} is the model {same.name!r} again")
        except ModelRefusedError as error:
            is_last = model is self._models.first
            self._models.give_up(model, str(error))
            if is_last and self._models.first.refused is not None:
                raise
            logger.error("the model %s is not served: %s", model.name, error)
        finally:
            self._models.changed.set()

    def _publish(self) -> None:
        self.expect()
        now = time.time()
        here = {each.name: each.served for each in self._models if each.refused is None}
        for name in [name for name in self._published if here.get(name) is None]:
            self._engine.withdraw_model(self._published.pop(name)[0])
        prepared = [served for served in here.values() if served is not None]
        # First those that are given up: nobody shall see more in use than are meant.
        for served in sorted(prepared, key=lambda each: each.manifest.in_use):
            manifest, due = self._published.get(served.name, (None, 0.0))
            if manifest != served.manifest or now >= due:
                expires = int(now) + self._url_seconds
                self._engine.publish_model(with_urls(served.manifest, self._signer, expires))
                due = now + self._url_seconds / 2
            self._published[served.name] = served.manifest, due

    def _pause_seconds(self) -> float | None:
        due = [due for _, due in self._published.values()]
        return max(min(due) - time.time(), 0.0) if due else None

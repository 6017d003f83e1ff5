"""The models of one gateway: which there are, which is in use, and how far each of them is.

Knows nothing of the bus. `gateway.keeper` prepares and publishes what this says; a file keeps it
over a restart of the gateway.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from broker.identity import identity
from gateway.choice import in_order
from gateway.gguf.file import file_model_name
from gateway.hub import is_hub_id, local_path
from gateway.model import ModelSlot, ServedModel
from gateway.requests import Engine, Readiness
from gateway.settings import Settings
from gateway.status import topic_level

logger = logging.getLogger(__name__)

_FILE: Final = "models.json"


class UnknownModelError(Exception):
    """There is no model of that name; the message names those that there are."""


class ModelConflictError(Exception):
    """What was asked does not go together with what is; the message says what does."""


@dataclass(slots=True, eq=False)
class Model:
    """One model of a gateway.

    Attributes:
        settings: What it is prepared by: its source, its name and its formats.
        slot: Filled when it is prepared.
        in_use: Whether the fog is to serve it.
        refused: Why it cannot be served, in words.
    """

    settings: Settings
    slot: ModelSlot = field(default_factory=ModelSlot)
    in_use: bool = False
    refused: str | None = None

    @property
    def name(self) -> str:
        """That clients use."""
        return model_name(self.settings)

    @property
    def served(self) -> ServedModel | None:
        """All between text and token ids, with the manifest as it is to be published."""
        served = self.slot.served
        if served is None or served.manifest.in_use == self.in_use:
            return served
        manifest = msgspec.structs.replace(served.manifest, in_use=self.in_use)
        self.slot.served = replace(served, manifest=manifest)
        return self.slot.served


class Models:
    """The models that a person gave to a gateway; the first is that of its settings.

    Attributes:
        changed: Set whenever something is to be prepared, published or taken back.
    """

    def __init__(self, settings: Settings) -> None:
        self.changed = asyncio.Event()
        self._settings = settings
        self._models = [Model(settings, in_use=True)]
        self._recall()

    # --- what there is -----------------------------------------------------------------------

    def __iter__(self) -> Iterator[Model]:
        return iter(tuple(self._models))

    @property
    def first(self) -> Model:
        """The model that is in use, or was given first."""
        return next((model for model in self._models if model.in_use), self._models[0])

    def find(self, name: str) -> Model:
        """Return a model by its name.

        Raises:
            UnknownModelError: There is none.
        """
        found = next((model for model in self._models if model.name == name), None)
        if found is None:
            known = ", ".join(repr(model.name) for model in self._models)
            raise UnknownModelError(f"there is no model {name!r}; there are {known}")
        return found

    def same_as(self, model: Model, served: ServedModel) -> Model | None:
        """Return another model with the same weights in the same formats."""
        wanted = identity(served.manifest)
        return next(
            (
                each
                for each in self._models
                if each is not model
                and each.served is not None
                and identity(each.served.manifest) == wanted
            ),
            None,
        )

    def of_revision(self, revision: str) -> Iterator[ServedModel]:
        """Yield the models with these weights."""
        for model in self._models:
            if model.served is not None and model.served.manifest.revision == revision:
                yield model.served

    def named(self, engine: Engine) -> list[ServedModel]:
        """Return the models that requests may name; the first is for those that name none."""
        prepared = {model.name: model.served for model in self._models if model.refused is None}
        served = {name: each for name, each in prepared.items() if each is not None}
        manifests = in_order((each.manifest for each in served.values()), engine.active_plan())
        return [served[manifest.name] for manifest in manifests]

    def readiness(self, engine: Engine) -> Readiness:
        """Return whether requests can be served: first a model, then the fog."""
        named = self.named(engine)
        if not named:
            return Readiness(False, self.first.slot.stage, self.first.slot.progress)
        readiness, problems = engine.readiness(), named[0].problems
        if readiness.ready or not problems:
            return readiness
        reason = f"{'; '.join(problems)} ({readiness.reason})"
        details = {**readiness.details, "checkpoint_problems": list(problems)}
        return Readiness(False, reason, readiness.progress, details)

    # --- what a person asks ------------------------------------------------------------------

    def add(self, source: str, name: str | None = None, weights: str | None = None) -> Model:
        """Take a model in; it is prepared, published and measured, and not used yet.

        It takes the place of one of its name that was refused.

        Raises:
            ValueError: There is no such weight format.
            ModelConflictError: Another one has this name.
        """
        settings = replace(
            self._settings,
            model=source,
            model_name=name,
            weights=self._settings.weights if weights is None else weights,
        )
        added = Model(settings)
        for model in self._models:
            if topic_level(model.name) != topic_level(added.name):
                continue
            if model.refused is None or model.in_use:
                raise ModelConflictError(
                    f"there is a model {model.name!r} already; give this one another name, "
                    "or remove that one first"
                )
            self._models.remove(model)
            break
        self._models.append(added)
        self._has_changed()
        return added

    def use(self, names: Sequence[str]) -> None:
        """Let the fog serve these models and give up the others.

        Raises:
            UnknownModelError: There is none of that name.
            ModelConflictError: It cannot be served, or is not prepared yet.
        """
        chosen = [self.find(name) for name in names]
        for model in chosen:
            problems = model.served.problems if model.served is not None else ()
            if model.refused is not None or problems:
                raise ModelConflictError(model.refused or "; ".join(problems))
            if model.served is None:
                raise ModelConflictError(f"the model {model.name!r} is {model.slot.stage}; wait")
        for model in self._models:
            model.in_use = model in chosen
        self._has_changed()

    def remove(self, name: str, engine: Engine) -> None:
        """Forget a model that nobody uses.

        Raises:
            UnknownModelError: There is none of that name.
            ModelConflictError: It is in use, or its requests have not ended.
        """
        model = self.find(name)
        if model.in_use:
            raise ModelConflictError(f"the model {name!r} is in use; use another one first")
        plan = engine.active_plan()
        if model.served is not None:
            manifest = model.served.manifest
            is_held = plan is not None and plan.part_for(manifest) is not None
            if is_held or engine.num_unfinished(manifest):
                raise ModelConflictError(f"the model {name!r} still serves; wait until it has left")
        self._models.remove(model)
        self._has_changed()

    def give_up(self, model: Model, why: str) -> None:
        """A model cannot be served; where it was the one in use, that of the settings is."""
        model.refused, model.in_use = why, False
        if not any(each.in_use for each in self._models):
            self._models[0].in_use = True
        self._has_changed()

    # --- over a restart ----------------------------------------------------------------------

    def _has_changed(self) -> None:
        entries = [
            _Entry(
                source=model.settings.model,
                name=model.settings.model_name,
                weights=model.settings.weights,
                in_use=model.in_use,
            )
            for model in self._models
        ]
        content = msgspec.json.encode(_File(setting=self._settings.model, models=entries))
        path = self._settings.state / _FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Replaced in one step: a gateway that is stopped here leaves no half of it.
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            logger.warning("models will be forgotten at the next start: %s", error)
        self.changed.set()

    def _recall(self) -> None:
        """Take over what was added and chosen before; settings that changed since go first."""
        try:
            known = msgspec.json.decode((self._settings.state / _FILE).read_bytes(), type=_File)
        except (OSError, msgspec.DecodeError):
            return  # absent or damaged: as the settings say
        # With another model in the settings, that is the one to use.
        is_chosen = known.setting == self._settings.model
        first = self._models[0]
        first.in_use = not is_chosen
        by_level = {topic_level(first.name): first}
        for entry in known.models:
            settings = replace(
                self._settings, model=entry.source, model_name=entry.name, weights=entry.weights
            )
            model = by_level.setdefault(topic_level(model_name(settings)), Model(settings))
            model.in_use = entry.in_use if is_chosen else model is first
        self._models = list(by_level.values())
        if not any(model.in_use for model in self._models):
            first.in_use = True


def model_name(settings: Settings) -> str:
    """Return the name that clients use: as it was set, else the hub id, or that of the path."""
    if settings.model_name is not None:
        return settings.model_name
    if is_hub_id(settings.model):
        return settings.model
    path = local_path(settings.model).resolve()
    # A folder's name may have a dot in it, as in Qwen2.5.
    return file_model_name(path) if path.is_file() else path.name


class _Entry(msgspec.Struct, kw_only=True):
    source: str
    name: str | None
    weights: str
    in_use: bool


class _File(msgspec.Struct, kw_only=True):
    setting: str
    models: list[_Entry]

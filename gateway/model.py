"""The model that a gateway serves, as the API needs it, and how far its preparation is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.architecture import ModelConfig, context_limit, parse_config
from broker.control import ModelManifest
from gateway.template import ChatTemplate
from gateway.text import Tokenizer
from gateway.tools.calls import ToolFormat
from gateway.tools.formats import tool_format


class ModelRefusedError(Exception):
    """The model cannot be served. The message says what is wrong with it and the remedy."""


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request gets that leaves a field out.

    From the checkpoint's ``generation_config.json``, where ``do_sample: false`` means greedy;
    what that does not say is as with OpenAI.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SamplingDefaults:
        """Read a ``generation_config.json``; a value that is no number counts as absent."""

        def number(name: str, default: float) -> float:
            value = config.get(name)
            return value if isinstance(value, int | float) else default

        return cls(
            temperature=0.0 if config.get("do_sample") is False else number("temperature", 1.0),
            top_p=number("top_p", 1.0),
            top_k=max(int(number("top_k", 0)), 0),
            min_p=number("min_p", 0.0),
            repetition_penalty=number("repetition_penalty", 1.0),
        )


@dataclass(frozen=True, slots=True)
class ModelText:
    """What stands beside the weights.

    Attributes:
        generation: As ``generation_config.json`` has it.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    generation: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """Everything between text and token ids for one model.

    Attributes:
        folder: Where the checkpoint lies; the weights server reads there.
        created: UTC seconds of preparation, OpenAI's ``created`` of a model.
        eos_token_ids: End an answer; never shown.
        software: Version of this gateway.
        problems: Tensors that the checkpoint lacks, in words; such a model is announced,
            so that the nodes that need them say so, but cannot become active.
        made: Files of the manifest that are not in ``folder``, by name.
    """

    folder: Path
    manifest: ModelManifest
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: SamplingDefaults
    eos_token_ids: tuple[int, ...]
    created: int
    software: str
    problems: tuple[str, ...] = ()
    made: Mapping[str, Path] = field(default_factory=dict)

    def path_of(self, file: str) -> Path:
        """Return where a file of the manifest lies."""
        return self.made.get(file, self.folder / file)

    @property
    def name(self) -> str:
        """The name that clients use."""
        return self.manifest.name

    @property
    def tool_format(self) -> ToolFormat | None:
        """How it writes calls of tools; None where that is not known."""
        return tool_format(self.template.source) if self.template is not None else None

    def fingerprint(self, arithmetics: Sequence[str]) -> str:
        """Return ``system_fingerprint``: with an equal one, equal requests have equal answers.

        Two things break that promise, as it matters then where a request runs; the
        fingerprint says both in clear: KV that travels in whole numbers, and devices of one
        plan that compute differently.

        Args:
            arithmetics: Of the devices of the plan (`DeviceProfile.arithmetic`), each once.
        """
        manifest = self.manifest
        parts = (manifest.revision, manifest.weights, manifest.kv_format, self.software)
        digest = hashlib.sha256("|".join((*parts, *arithmetics)).encode()).hexdigest()[:10]
        mark = "" if manifest.kv_transfer == "exact" else f"_kv-{manifest.kv_transfer}"
        return f"fp_{digest}{'_mixed' if len(arithmetics) > 1 else ''}{mark}"

    @property
    def context_tokens(self) -> int:
        """Prompt plus answer that the model is made for, whatever the plan can hold."""
        return context_limit(self.config)


def read_folder_text(folder: Path) -> ModelText:
    """Read tokenizer, template and defaults from a checkpoint's folder.

    Raises:
        TokenizerError, ChatTemplateError: A file is missing or damaged.
        ModelRefusedError: ``generation_config.json`` is damaged.
    """
    generation = _read_generation_config(folder)
    return ModelText(Tokenizer.from_folder(folder), ChatTemplate.from_folder(folder), generation)


def join_model(
    folder: Path,
    manifest: ModelManifest,
    text: ModelText,
    *,
    problems: tuple[str, ...],
    created: int,
    software: str,
    made: Mapping[str, Path],
) -> ServedModel:
    """Return the model of weights and what stands beside them."""
    config = parse_config(manifest.config)
    return ServedModel(
        folder=folder,
        manifest=manifest,
        config=config,
        tokenizer=text.tokenizer,
        template=text.template,
        defaults=SamplingDefaults.from_config(text.generation),
        eos_token_ids=_eos_token_ids(text.generation) or config.eos_token_ids,
        created=created,
        software=software,
        problems=problems,
        made=made,
    )


def _read_generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelRefusedError(f"{path} is damaged: {error}") from error
    return content if isinstance(content, dict) else {}


def _eos_token_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    return tuple(token_id for token_id in ids if isinstance(token_id, int))


@dataclass(slots=True)
class ModelSlot:
    """Where the model will be when it is prepared; HTTP is served before that.

    Attributes:
        served: The model, or None while it is prepared.
        stage: What is being done, in words, for ``/readyz``.
        progress: 0..1 where it is known.
    """

    served: ServedModel | None = None
    stage: str = "starting"
    progress: float | None = None

    def report(self, stage: str, progress: float | None) -> None:
        """Say how far the preparation is; called from its thread."""
        self.stage, self.progress = stage, progress

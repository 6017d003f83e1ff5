"""Which model a fog serves: the one in the package, a folder, or an id on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEMO_MODEL: Final = Path(__file__).parent / "demo_model"
DEMO_NAME: Final = "e2llm-demo"
DEMO_QUESTION: Final = "What is 7 plus 5?"
OTHER_QUESTION: Final = "Why is the sky blue? Answer in one sentence."

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class ModelChoiceError(ValueError):
    """``--model`` names neither a model folder nor something the hub could have."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model to serve.

    Attributes:
        source: What the gateway is told: a folder or a hub id.
        name: Name for requests; None: the gateway's default, after folder or id.
        question: What `e2llm up` asks when the fog is ready.
    """

    source: str
    name: str | None
    question: str


def choose_model(text: str | None) -> ModelChoice:
    """Return the choice that ``--model`` makes.

    Raises:
        ModelChoiceError: The folder is not there or holds no model.
    """
    if text is None:
        return ModelChoice(str(DEMO_MODEL), DEMO_NAME, DEMO_QUESTION)
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelChoiceError(
                f"--model {text}: the folder has no config.json; a model folder holds config.json, "
                "tokenizer.json and *.safetensors"
            )
        return ModelChoice(str(folder.resolve()), None, OTHER_QUESTION)
    if text.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(text):
        raise ModelChoiceError(
            f"--model {text}: no such folder, and not a hub id like Qwen/Qwen2.5-0.5B-Instruct"
        )
    return ModelChoice(text, None, OTHER_QUESTION)

"""Which model a fog serves: the one in the package, a folder or file, or an id on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEMO_MODEL: Final = Path(__file__).parent / "demo_model"
DEMO_NAME: Final = "e2llm-demo"
DEMO_QUESTION: Final = "What is 7 plus 5?"
_DEMO_FILES: Final = ("config.json", "tokenizer.json", "model.safetensors")
_TRAINING_SCRIPT: Final = Path("scripts/train_demo_model.py")
OTHER_QUESTION: Final = "Why is the sky blue? Answer in one sentence."

_GGUF: Final = ".gguf"
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w./-]+\.gguf)?")


class ModelChoiceError(ValueError):
    """``--model`` names neither a model here nor something the hub could have."""


class DemoModelMissingError(Exception):
    """The package came without its model, or with a part of it. Says where, and the remedy."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model to serve.

    Attributes:
        source: What the gateway is told: a folder, a GGUF file or a hub id.
        name: Name for requests; None: the gateway's default, after folder, file or id.
        question: What `e2llm up` asks when the fog is ready.
    """

    source: str
    name: str | None
    question: str


def choose_model(text: str | None) -> ModelChoice:
    """Return the choice that ``--model`` makes.

    Raises:
        ModelChoiceError: Folder or file is not there or holds no model.
        DemoModelMissingError: None was named, and the one in the package is not there.
    """
    if text is None:
        check_demo_model(DEMO_MODEL)
        return ModelChoice(str(DEMO_MODEL), DEMO_NAME, DEMO_QUESTION)
    if not text.strip():
        raise ModelChoiceError("--model is empty; name a model folder, a GGUF file or a hub id")
    path = Path(text).expanduser()
    if path.is_file() and path.suffix == _GGUF:
        # Not what it is a link to, which may have another ending.
        return ModelChoice(str(path.absolute()), None, OTHER_QUESTION)
    if path.is_dir():
        if not (path / "config.json").is_file() and not any(path.glob(f"*{_GGUF}")):
            raise ModelChoiceError(
                f"--model {text}: the folder has no config.json; a model folder holds config.json, "
                "tokenizer.json and *.safetensors, or one GGUF file"
            )
        return ModelChoice(str(path.resolve()), None, OTHER_QUESTION)
    if path.is_file():
        raise ModelChoiceError(
            f"--model {text}: this file is no model; name a model folder or a file that ends "
            f"in {_GGUF}"
        )
    if text.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(text):
        raise ModelChoiceError(
            f"--model {text}: no such folder or GGUF file, and not a hub id like "
            "Qwen/Qwen2.5-0.5B-Instruct"
        )
    return ModelChoice(text, None, OTHER_QUESTION)


def check_demo_model(folder: Path) -> None:
    """Raise `DemoModelMissingError` unless the folder holds a whole model."""
    missing = [name for name in _DEMO_FILES if not (folder / name).is_file()]
    if not missing:
        return
    checkout = folder.parent.parent
    if (checkout / _TRAINING_SCRIPT).is_file():
        remedy = f"train it: python {checkout / _TRAINING_SCRIPT} --out {folder}"
    else:
        remedy = "install e2llm again"
    raise DemoModelMissingError(
        f"the demo model in {folder} lacks {', '.join(missing)}; {remedy}; "
        "or start with another one: --model MODEL"
    )

"""A model on disk, from there or from the hub; the only module that talks to a hub.

``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` mean what they mean for
``huggingface_hub``, whose cache is used, so what other tools have downloaded is there.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final

from broker.control import HubPlace
from gateway.gguf.file import SUFFIX, parts_of
from gateway.model import ModelRefusedError

_HUB_ID: Final = re.compile(
    r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-][\w./-]*))?(?::((?:\w[\w.-]*/)*\w[\w.-]*\.gguf))?"
)
# What serving needs; other formats of the same weights are left where they are.
_FILES: Final = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
]

Progress = Callable[[float], None]


class HubUnreachableError(Exception):
    """The hub did not answer, or broke off too often; trying again later may help."""


def local_path(model: str) -> Path:
    """Return where a model is if it is here; a home of nobody stays as it is written."""
    try:
        return Path(model).expanduser()
    except RuntimeError:
        return Path(model)


def source_problem(model: str) -> str | None:
    """Return why ``model`` can be no path nor hub id, whatever there is; None: it may be one."""
    if not model.strip():
        return "is empty; name a folder, a GGUF file or a hub id"
    try:
        local_path(model).exists()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return f"can be no path ({reason})"
    return None


def is_hub_id(model: str) -> bool:
    """Return whether ``model`` is not an existing folder but may be a hub id."""
    return not Path(model).exists() and _HUB_ID.fullmatch(model) is not None


def model_path(model: str, progress: Progress = lambda ratio: None) -> Path:
    """Return a model's folder or GGUF file; downloads what is not in the cache yet.

    Args:
        model: A folder, a GGUF file, or a hub id such as ``owner/name``,
            ``owner/name@revision`` or ``owner/name:folder/file.gguf``.
        progress: Told 0..1 while files are downloaded.

    Raises:
        ModelRefusedError: It is neither, or the hub does not have it or does not give it.
        HubUnreachableError: The hub cannot be reached and the cache does not have it.
    """
    folder = local_path(model)
    if model and folder.is_dir():
        return folder.resolve()
    if model and folder.is_file() and folder.suffix == SUFFIX:
        # Under this name: it may be a link to one without an ending, as in the hub's cache.
        return folder.absolute()
    if model and folder.exists():
        raise ModelRefusedError(
            f"{model} is a file; give the folder of a checkpoint, or a file in GGUF"
        )
    if not is_hub_id(model):
        raise ModelRefusedError(
            f"{model!r} is neither a folder or GGUF file here nor a hub id such as owner/name"
        )
    return _download(model, progress)


def hub_place(model: str, path: Path) -> HubPlace | None:
    """Return where nodes find the files of a downloaded model; None: its commit is unknown.

    Args:
        model: A hub id.
        path: What `model_path` returned for it.
    """
    from huggingface_hub import constants

    repository, _, file = _parts(model)
    inside = PurePosixPath(file or "")
    folder = path
    for _ in inside.parts:
        folder = folder.parent
    if folder.parent.name != "snapshots":
        return None
    return HubPlace(
        endpoint=constants.ENDPOINT.rstrip("/"),
        repository=repository,
        revision=folder.name,
        folder="/".join(inside.parts[:-1]),
    )


def _parts(model: str) -> tuple[str, str | None, str | None]:
    """Return repository, revision and GGUF file of a hub id."""
    found = _HUB_ID.fullmatch(model)
    assert found is not None, "the caller looked"
    return found[1], found[2], found[3]


def _download(model: str, progress: Progress) -> Path:
    # Imported here: a gateway with a folder does not pay for it.
    import httpx2
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = constants.ENDPOINT
    repository, revision, file = _parts(model)
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=_FILES if file is None else [str(part) for part in parts_of(Path(file))],
            tqdm_class=_progress_bar(progress),
        )
    except GatedRepoError as error:
        raise ModelRefusedError(
            f"{model} at {endpoint} is only for those who accepted its terms: accept them on "
            "its page and set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelRefusedError(
            f"{endpoint} has no model {model}, or it is private: check the id, or set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise HubUnreachableError(
            f"{model} is not in the cache and {endpoint} cannot be reached: {_first_line(error)}"
        ) from error
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise ModelRefusedError(
                f"{endpoint} refuses access to {model}: check HF_TOKEN"
            ) from error
        raise HubUnreachableError(f"{endpoint}: {_first_line(error)}") from error
    except (httpx2.HTTPError, OSError) as error:
        raise HubUnreachableError(
            f"downloading {model} from {endpoint} failed: {_first_line(error)}"
        ) from error
    path = Path(folder).resolve()
    if file is not None and not (path / file).is_file():
        raise ModelRefusedError(f"{endpoint} has no file {file} in {repository}: check the name")
    return path if file is None else path / file


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _progress_bar(progress: Progress) -> type[Any]:
    """Return a progress bar that prints nothing and reports the ratio of bytes."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread that refreshes what nobody sees

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def display(self, *args: Any, **kwargs: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> Any:
            shown = super().update(n)
            # Other bars count files; of this kind there is one for all files together.
            if self.unit == "B" and self.total:
                progress(min(self.n / self.total, 1.0))
            return shown

    return Bar

"""From what names a model to a served one, with progress."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from gateway.checkpoint import Checkpoint
from gateway.gguf.text import read_text
from gateway.hub import HubUnreachableError, hub_place, is_hub_id, model_path
from gateway.manifest import prepare_manifest, whole_file
from gateway.model import (
    ModelRefusedError,
    ModelSlot,
    ModelText,
    ServedModel,
    join_model,
    read_folder_text,
)
from gateway.models import model_name
from gateway.settings import Settings
from gateway.status import topic_level
from gateway.template import ChatTemplateError
from gateway.text import TokenizerError

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_FIRST_RETRY_SECONDS: Final = 5.0
_LAST_RETRY_SECONDS: Final = 60.0


async def prepare_model(settings: Settings, slot: ModelSlot, software: str) -> ServedModel:
    """Return the model when it is there; fills the slot. A hub out of reach is asked again.

    Raises:
        ModelRefusedError: The model cannot be served.
    """
    delay = _FIRST_RETRY_SECONDS
    while True:
        try:
            model = await _in_daemon(lambda: read_model(settings, slot, software))
            break
        except HubUnreachableError as error:
            slot.report(f"waiting for the hub: {error}", None)
            logger.warning("%s; trying again in %.0f s", error, delay)
        await asyncio.sleep(delay)
        delay = min(2 * delay, _LAST_RETRY_SECONDS)
    for problem in model.problems:
        logger.error("%s", problem)
    logger.info(
        "model %s: revision %s, %d tensors",
        model.name,
        model.manifest.revision,
        len(model.manifest.tensors),
    )
    slot.served = model
    return model


def read_model(settings: Settings, slot: ModelSlot, software: str) -> ServedModel:
    """Find, check and read the model; blocks for as long as a download takes.

    Raises:
        ModelRefusedError: The model cannot be served.
        HubUnreachableError: It must be downloaded, and the hub cannot be reached.
    """
    if is_hub_id(settings.model):
        slot.report(f"downloading model {settings.model}", 0.0)
    path = model_path(
        settings.model, lambda ratio: slot.report(f"downloading model {settings.model}", ratio)
    )
    slot.report(f"reading model {settings.model}", 0.0)
    prepared = prepare_manifest(
        path,
        name=model_name(settings),
        weights=settings.weights,
        kv_format=settings.kv_format,
        kv_transfer=settings.kv_transfer,
        cache=settings.state / "checksums" / f"{topic_level(model_name(settings))}.json",
        progress=lambda ratio: slot.report(f"reading model {settings.model}", ratio),
    )
    manifest = prepared.manifest
    if not settings.shares_folder:
        # The same path on another machine may be another model; there, URLs are the way.
        manifest = msgspec.structs.replace(manifest, folder=None)
    if is_hub_id(settings.model):
        manifest = msgspec.structs.replace(manifest, hub=hub_place(settings.model, path))
    text, made = _text_of(prepared.checkpoint), {}
    if prepared.checkpoint.gguf is not None:
        # Nodes that choose tokens by a grammar read it; the file itself says it in other words.
        tokenizer = _write_tokenizer(settings.state / "tokenizers", text.tokenizer.to_json())
        made = {tokenizer.name: tokenizer}
        manifest = msgspec.structs.replace(manifest, tokenizer=whole_file(tokenizer))
    return join_model(
        prepared.checkpoint.folder,
        manifest,
        text,
        made=made,
        problems=prepared.problems,
        created=int(time.time()),
        software=software,
    )


def _write_tokenizer(folder: Path, content: str) -> Path:
    """Return a file with that content, named by it."""
    path = folder / f"tokenizer-{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(content, "utf-8")
        temporary.replace(path)
    return path


def _text_of(checkpoint: Checkpoint) -> ModelText:
    try:
        if checkpoint.gguf is not None:
            return read_text(checkpoint.gguf)
        return read_folder_text(checkpoint.folder)
    except (TokenizerError, ChatTemplateError) as error:
        raise ModelRefusedError(str(error)) from error


async def _in_daemon(work: Callable[[], ResultT]) -> ResultT:
    """Run ``work`` in a thread that the end of the process does not wait for.

    Reading a large model takes minutes; nobody who stops a gateway should wait for that.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ResultT] = loop.create_future()

    def settle(set_outcome: Callable[[], None]) -> None:
        if not future.done():  # not cancelled in the meantime
            set_outcome()

    def run() -> None:
        try:
            result = work()
        except Exception as error:
            outcome = partial(future.set_exception, error)
        else:
            outcome = partial(future.set_result, result)
        # The loop is closed when the gateway stopped in the meantime.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name="model", daemon=True).start()
    return await future

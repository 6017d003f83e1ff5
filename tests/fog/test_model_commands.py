"""``e2llm model`` against the routes of a real gateway over a fake engine."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api, settings_for
from tests.support.model_folder import EOS, ids_of, write_model_folder


@pytest.fixture
def api(tmp_path: Path) -> Api:
    engine = FakeEngine(lambda generation: [*ids_of("It is 12."), EOS])
    folder = write_model_folder(tmp_path / "first")
    return Api(engine, settings_for(folder, tmp_path / "state"))


@asynccontextmanager
async def running(api: Api) -> AsyncIterator[str]:
    async with api.kept(), api.served() as url:
        yield url


async def e2llm(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "fog", "model", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "E2LLM_URL": url},
    )


async def as_json(url: str, *arguments: str) -> Any:
    done = await e2llm(url, *arguments, "--json", "-")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_a_model_is_added_used_and_the_other_one_removed(api: Api, tmp_path: Path) -> None:
    second = write_model_folder(tmp_path / "second")
    async with running(api) as url:
        added = await as_json(url, "add", str(second), "--weights", "int8")
        used = await as_json(url, "use", "second")
        left = await as_json(url, "remove", MODEL)
        table = await e2llm(url, "list")

    assert (added["name"], added["state"], added["in_use"]) == ("second", "added", False)
    assert {each["name"]: each["state"] for each in used} == {MODEL: "added", "second": "serving"}
    assert [each["name"] for each in left] == ["second"]
    assert "int8" in table.stdout
    assert "serving" in table.stdout


async def test_what_the_gateway_refuses_ends_with_its_words(api: Api, tmp_path: Path) -> None:
    async with running(api) as url:
        missing = await e2llm(url, "add", str(tmp_path / "nowhere"))
        unknown = await e2llm(url, "use", "nobody")
        in_use = await e2llm(url, "remove", MODEL)
        used = await e2llm(url, "use", MODEL)
    assert [each.returncode for each in (missing, unknown, in_use)] == [1, 1, 1]
    assert "neither a folder" in missing.stderr
    assert "there is no model 'nobody'" in unknown.stderr
    assert "in use" in in_use.stderr
    # Of one that was refused before, a change has nothing to tell.
    assert MODEL in used.stdout
    assert "nowhere" not in used.stdout

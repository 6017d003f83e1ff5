"""The files of examples/ that call functions, against a gateway whose model does.

The demo model does not, so an engine without a fog answers: with a call, then with a sentence
about what the call has brought.
"""

import asyncio
from pathlib import Path

import pytest

from gateway.requests import Generation
from tests.support.examples import run_example
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api
from tests.support.model_folder import (
    CONFIG,
    EOS,
    TOOLS_TEMPLATE,
    ids_of,
    write_model_folder,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clients")]

CALL = '<tool_call>\n{"name": "temperature", "arguments": {"room": "cellar"}}\n</tool_call>'
ANSWER = "It is chilly."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {**CONFIG, "max_position_embeddings": 4096}
    return write_model_folder(
        tmp_path_factory.mktemp("tools"), template=TOOLS_TEMPLATE, config=config
    )


@pytest.mark.parametrize(
    "name",
    [
        "openai_tools.py",
        "openai_tools.mjs",
        "langchain_tools.py",
        "llm_tools.sh",
        "ollama_tools.py",
    ],
)
async def test_a_client_calls_its_function_and_gets_an_answer_about_it(
    api: Api, engine: FakeEngine, name: str
) -> None:
    prompts: list[str] = []

    def script(generation: Generation) -> list[int]:
        assert api.slot.served is not None
        prompts.append(api.slot.served.tokenizer.decode(generation.prompt_ids))
        is_told = "11.5 degrees" in prompts[-1]
        return [*ids_of(ANSWER if is_told else CALL), EOS]

    engine.script = script

    async with api.served() as url:
        environ = {"E2LLM_URL": url, "E2LLM_MODEL": MODEL}
        run = await asyncio.to_thread(run_example, name, environ=environ)

    assert "cellar" in run.text
    assert run.lines[-1].text == ANSWER
    asking, told = prompts
    assert "how warm a room is" in asking
    assert "tool:11.5 degrees" in told

"""Whether the OpenAPI document is right: schemathesis against a gateway with stand-in nodes.

    python -m tests.support.fuzzing [--seconds 180] [--seed 1]

sends what the document describes, and what it does not, to every route, and fails on an error of
the server or a status that the document does not have.
"""

import argparse
import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from broker.events import Logprobs
from broker.joining import JoinFolder
from gateway.requests import Generation
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api, settings_for
from tests.support.model_folder import CONFIG, EOS, ids_of, write_model_folder

CHECKS: Final = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
HOOKS: Final = "tests.support.fuzzing_hooks"
KEY: Final = "e2-admin-key-of-the-fuzzing-run"
ROOT: Final = Path(__file__).parents[2]
TEMPLATE: Final = "{% for message in messages %}{{ message.content }}{% endfor %}<tool_call>"


def gateway(folder: Path, joins: JoinFolder) -> Api:
    """Return a gateway whose nodes are a script."""
    config = {**CONFIG, "max_position_embeddings": 4096}
    write_model_folder(folder / "model", template=TEMPLATE, config=config)
    engine = FakeEngine(answer)
    engine.logprobs = lambda token_id: Logprobs(-0.5, ((token_id, -0.5),))
    settings = settings_for(folder / "model", folder / "state", admin_key=KEY, joins=joins.path)
    return Api(engine, settings)


def answer(generation: Generation) -> list[int]:
    """Return a short answer, or one as long as it may be where no end token ends it."""
    said = [*ids_of('It is "12".'), EOS]
    return said * generation.max_tokens if generation.sampling.ignore_eos else said


async def take_in(joins: JoinFolder) -> None:
    """Let every device join, as a broker does."""
    while True:
        for request in joins.requests():
            joins.settle(request, None)
        await asyncio.sleep(0.02)


async def run(*options: str) -> tuple[int, str]:
    """Run schemathesis; return its exit status and what it said."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as name:
        joins = JoinFolder(Path(name) / "joins")
        joins.make()
        broker = asyncio.create_task(take_in(joins))
        async with gateway(Path(name), joins).served() as url:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
                *("--header", f"Authorization: Bearer {KEY}"),
                *("--checks", ",".join(CHECKS), *options),
                cwd=name,
                env={**os.environ, "PYTHONPATH": path, "SCHEMATHESIS_HOOKS": HOOKS},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await process.communicate()
        broker.cancel()
    return process.returncode or 0, said.decode("utf-8", "replace")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    flags: list[Any] = ["--max-time", options.seconds, "--seed", options.seed]
    status, said = asyncio.run(run(*map(str, flags), "--continue-on-failure"))
    print(said)
    return status


if __name__ == "__main__":
    sys.exit(main())

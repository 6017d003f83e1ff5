"""`e2llm bench serve`: what it counts, what it sends, and a load on a real gateway."""

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fog.client import FogRequestError, FogUnreachableError
from fog.options import EXIT_INTERRUPTED
from fog.serving import run
from fog.serving.load import send_load
from fog.serving.prompts import UnfitProbesError, make_prompt, probes, word_scale
from fog.serving.report import Targets, as_json, lines, summarise
from fog.serving.run import ServeOptions, run_serve
from fog.serving.sample import Sample
from tests.support.bus import free_port
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api, settings_for
from tests.support.model_folder import CONFIG, write_model_folder


def sample(*times: float, due_at: float = 0.0, **changes: Any) -> Sample:
    values = {"due_at": due_at, "sent_at": due_at, "times": times, "answer_tokens": len(times)}
    return Sample(**{**values, **changes})


# --- samples ------------------------------------------------------------------------------


def test_times_count_from_when_a_request_was_due() -> None:
    seen = sample(3.0, 3.5, 4.0, 5.0, due_at=1.0, sent_at=2.0)
    assert seen.ttft_seconds == 2.0
    assert seen.end_to_end_seconds == 4.0
    assert seen.tpot_seconds == pytest.approx(2 / 3)
    assert seen.longest_gap_seconds == 1.0


def test_waiting_ends_a_step_before_the_second_token() -> None:
    # The second token was 5 s behind the first; later steps take 1 s, so decode began at 6.
    assert sample(2.0, 7.0, 8.0, 9.0).waiting_seconds == 6.0
    # Never before the first token, from which decode starts.
    assert sample(2.0, 2.1, 4.0).waiting_seconds == 2.0


def test_a_first_piece_of_several_tokens_does_not_count_as_decode() -> None:
    seen = sample(1.0, 2.0, piece_tokens=(3, 2), answer_tokens=5)
    assert seen.tpot_seconds == 0.5


def test_an_answer_of_one_token_has_no_later_times_and_meets_any_target_for_them() -> None:
    seen = sample(1.0)
    assert seen.tpot_seconds != seen.tpot_seconds
    assert seen.waiting_seconds != seen.waiting_seconds
    assert seen.meets(1.0, 0.001)
    assert not seen.meets(0.5, None)


def test_a_failed_request_meets_no_target_and_is_in_no_distribution() -> None:
    found = summarise([sample(1.0, 2.0), sample(9.0, error="HTTP 500: no")], Targets(2.0), 3)
    assert (found.num_requests, found.num_finished, found.num_good) == (3, 1, 1)
    assert found.times["ttft_seconds"].mean == 1.0
    assert found.errors == {"HTTP 500: no": 1}
    assert any("HTTP 500: no" in line for line in lines(found, Targets(2.0)))


def test_a_generator_that_falls_behind_is_named() -> None:
    late = summarise([sample(2.0, due_at=0.0, sent_at=1.0)], Targets(), 1)
    assert any("1.0 s late" in line for line in lines(late, Targets()))


def test_times_that_do_not_exist_are_null_in_json() -> None:
    written = as_json(summarise([], Targets(), 1), [], {"model": "tiny"})
    assert json.loads(json.dumps(written, allow_nan=False))["ttft_seconds"]["mean"] is None


# --- prompts ------------------------------------------------------------------------------


def test_prompts_have_the_wanted_length_by_the_servers_own_count() -> None:
    def count(text: str) -> int:
        return 9 + 2 * len(text.split())  # a template of 9 tokens, words of two

    scale = word_scale([count(probe) for probe in probes()])
    for wanted in (11, 64, 501):
        assert abs(count(make_prompt(scale, wanted, random.Random(0))) - wanted) <= 1


def test_a_server_that_counts_all_prompts_alike_cannot_be_used() -> None:
    with pytest.raises(UnfitProbesError, match="5 tokens"):
        word_scale([5, 5])


# --- against a gateway --------------------------------------------------------------------


@pytest.fixture
def api(tmp_path: Path) -> Api:
    config = {**CONFIG, "max_position_embeddings": 2048}
    folder = write_model_folder(tmp_path / "model", config=config)
    engine = FakeEngine(lambda generation: [5 + i % 20 for i in range(generation.max_tokens)])
    return Api(engine, settings_for(folder, tmp_path / "state"))


@pytest.fixture
def console() -> Iterator[Console]:
    with Path("/dev/null").open("w") as nowhere:
        yield Console(file=nowhere)


async def measure(api: Api, console: Console, **options: Any) -> tuple[int, list[Any]]:
    """Run a load against a served gateway; return its exit code and what was asked for."""
    async with api.served() as url:
        code = await asyncio.to_thread(run_serve, ServeOptions(url=url, **options), console)
    return code, [(g.max_tokens, len(g.prompt_ids)) for g in api.engine.submitted[2:]]


async def test_a_load_at_a_time_is_answered_and_written(
    api: Api, console: Console, tmp_path: Path
) -> None:
    target = tmp_path / "out.json"
    code, asked = await measure(
        api, console, num_requests=12, concurrency=4, answer_tokens=6, json_target=str(target)
    )
    written = json.loads(target.read_text())
    assert code == 0
    assert written["model"] == MODEL
    assert written["num_finished"] == 12
    assert written["errors"] == {}
    assert sorted(answer for answer, _ in asked) == sorted(
        row["answer_tokens"] for row in written["rows"]
    )
    assert sorted(prompt for _, prompt in asked) == sorted(
        row["prompt_tokens"] for row in written["rows"]
    )
    assert all(row["ttft_seconds"] > 0 for row in written["rows"])


async def test_requests_with_a_rate_are_due_as_the_workload_says(
    api: Api, console: Console, tmp_path: Path
) -> None:
    target = tmp_path / "out.json"
    options = {"num_requests": 5, "rate": 50.0, "arrivals": "fixed", "workload": "chat"}
    await measure(api, console, **options, json_target=str(target))
    due = [row["due_at"] for row in json.loads(target.read_text())["rows"]]
    assert due == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08])


async def test_completions_are_asked_with_a_prompt(api: Api, console: Console) -> None:
    code, _ = await measure(api, console, num_requests=2, is_chat=False)
    assert code == 0
    assert all("prompt" in generation.body for generation in api.engine.submitted)


async def test_a_request_that_fails_ends_the_load_with_one(api: Api, console: Console) -> None:
    api.engine.error, api.engine.error_at = RuntimeError("no"), 3
    code, _ = await measure(api, console, num_requests=2)
    assert code == 1


async def test_another_model_than_the_servers_is_named(api: Api, console: Console) -> None:
    with pytest.raises(FogRequestError, match=MODEL):
        await measure(api, console, model="gpt-9")


def test_a_server_that_does_not_answer_is_named(console: Console) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(FogUnreachableError, match=url):
        run_serve(ServeOptions(url=url), console)


async def test_an_interrupted_load_keeps_what_it_has(
    api: Api, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.json"

    async def cancelled(*arguments: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        plan, server, progress, on_change = arguments

        def stop_at_three() -> None:
            on_change()
            if len(progress.samples) == 3:
                task.cancel()

        await send_load(plan, server, progress, stop_at_three)

    monkeypatch.setattr(run, "send_load", cancelled)
    code, _ = await measure(api, console, num_requests=50, concurrency=1, json_target=str(target))
    written = json.loads(target.read_text())
    assert code == EXIT_INTERRUPTED
    assert 3 <= written["num_finished"] < 50


async def test_figures_are_drawn(api: Api, console: Console, tmp_path: Path) -> None:
    await measure(api, console, num_requests=3, figures=tmp_path / "figures")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "timeline.png",
        "times.png",
    ]

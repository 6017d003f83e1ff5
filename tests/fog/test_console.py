"""What a person sees: tables, progress, the welcome, and how long a wait is patient."""

import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fog.answer import Answer
from fog.client import Readiness
from fog.history import history_view
from fog.patience import Patience, Standstill
from fog.processes import ProcessState
from fog.progress import LiveDisplay, PlainDisplay, Snapshot, device_text, make_display
from fog.tables import devices_table, latency_text, layers_text, plan_view
from fog.verdict import final_reason
from fog.welcome import (
    activation,
    answer_figures,
    curl_line,
    print_next_steps,
    print_welcome,
)
from tests.fog.fake_gateway import DEVICES, PLAN

READY, STARTING = ProcessState.READY, ProcessState.STARTING


def console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=110, force_terminal=terminal, color_system=None), output


def rendered(thing: object) -> str:
    shown, output = console()
    shown.print(thing)
    return output.getvalue()


def test_the_plan_shows_who_holds_what_and_who_is_left_out() -> None:
    text = rendered(plan_view(PLAN))
    lines = text.splitlines()
    (first,) = [line for line in lines if "laptop" in line]
    (second,) = [line for line in lines if " pi " in line]
    assert "r-1" in first
    assert "prefill" in first
    assert "embedding + 0-4" in first
    assert "4 ms" in first
    assert "40 ms per token" in first
    assert "5 + head" in second
    assert "12 ms" in second
    assert "not used: toaster (too slow [by far])" in text


def test_devices_that_compute_differently_are_told_below_the_plan() -> None:
    assert "warning" not in rendered(plan_view(PLAN))
    text = rendered(plan_view({**PLAN, "arithmetic_problem": "devices compute differently"}))
    assert "warning: devices compute differently" in text


def test_a_device_that_is_drained_says_so() -> None:
    text = rendered(devices_table([{**DEVICES[0], "placement": "draining"}, DEVICES[1]]))
    assert "ready, draining" in text
    assert "sleeping " in text


def test_measured_stage_times_stand_beside_the_predicted_ones_with_the_error() -> None:
    plan = json.loads(json.dumps(PLAN))
    decode = {"rows": 2.5, "predicted_seconds": 0.01, "measured_seconds": 0.012, "error": 0.2}
    plan["replicas"][0]["stages"][0]["measured"] = {"decode": decode, "prefill": None}
    prefill = {"prompt_tokens": 64, "predicted_seconds": 0.002, "measured_seconds": 0.001}
    prefill["error"] = -0.5
    plan["replicas"][0]["stages"][1]["measured"] = {"decode": None, "prefill": prefill}
    plan["errors"] = {"stage_seconds": 0.35, "ttft_seconds": None, "tpot_seconds": 0.04}
    text = rendered(plan_view(plan))
    assert "12 ms (+20%) with 2.5 rows" in text
    assert "1 ms (-50%) per prompt token, predicted for prompts of 64" in " ".join(text.split())
    told = (
        "measured over predicted for prompts as long as these: decode steps of stages off by 35% "
        "(median)"
    )
    assert f"{told}, time per token (+4%)" in " ".join(text.split())


def test_decisions_say_what_changed_what_was_compared_and_why() -> None:
    compared = [
        {"name": name, "num_replicas": 2, "num_devices": 5, "requests_per_second": rate}
        | {"objective_seconds": 1 / rate, "optimality": ""}
        for name, rate in (("running", 2.0), ("best", 2.1))
    ]
    kept = {"at": 1.8e9, "trigger": "pi is 4 times slower than planned", "outcome": "kept"}
    kept |= {"reason": "another plan would gain 5.0%", "version": 7, "considered": compared}
    text = rendered(history_view([kept, {"at": 0, "outcome": "none", "reason": "pi failed"}]))
    assert "kept  plan 7" in text
    assert "what changed: pi is 4 times slower than planned" in text
    assert "why: another plan would gain 5.0%" in text
    assert "as it is: 2 replicas on 5 devices, 2 requests/s, 500 ms per request" in text
    assert "best found: 2 replicas on 5 devices, 2.1 requests/s" in text
    assert "pi failed" in text
    assert "No decision yet" in rendered(history_view([]))


@pytest.mark.parametrize(
    ("exposed", "text"),
    [
        (0.0, "KV transfer 20 ms during prefill"),
        (0.005, "KV transfer 20 ms, 5 ms of it after prefill"),
        (0.02, "KV transfer 20 ms after prefill"),
    ],
)
def test_of_a_kv_transfer_the_part_is_told_that_a_user_waits_for(exposed: float, text: str) -> None:
    assert latency_text({"kv_seconds": 0.02, "kv_exposed_seconds": exposed}) == text


def test_the_predicted_capacity_is_told_apart_from_the_demand_that_was_measured() -> None:
    measured = {
        "window_seconds": 60.0,
        "decode_tokens_per_second": 2.5,
        "prefill_tokens_per_second": 207.3,
        "tpot_seconds": 0.05,
    }
    single = {"device": "laptop", "predicted": {"requests_per_second": 0.5}}
    text = rendered(plan_view({**PLAN, "measured": measured, "best_single_device": single}))
    lines = text.splitlines()
    assert (
        "capacity (predicted at full load): 25.0 tokens/s decoded; a lone request: TTFT 250 ms"
    ) in lines
    assert (
        "measured over the last 60 s: 2.5 tokens/s decoded; "
        "recent requests: 50 ms per token, prompts at 207 tokens/s"
    ) in lines
    assert (
        "best single device: laptop, capacity (predicted at full load): 0.50 requests/s"
    ) in lines


def test_a_plan_of_another_version_with_fewer_fields_is_still_shown() -> None:
    stage = {"device": "pi", "layers": [0, 2]}
    text = rendered(plan_view({"replicas": [{"id": "r", "stages": [stage]}]}))
    assert "0-1" in text


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ({"layers": [0, 1]}, "0"),
        ({"layers": [2, 5]}, "2-4"),
        ({"layers": [0, 5], "embedding": True, "head": True}, "embedding + 0-4 + head"),
    ],
)
def test_layers_are_named_by_the_first_and_the_last(stage: dict[str, object], text: str) -> None:
    assert layers_text(stage) == text


def test_devices_are_listed_with_what_they_hold() -> None:
    text = rendered(devices_table([*DEVICES, {"id": "[pi]", "state": "lost"}]))
    assert "2.0 KiB" in text
    assert "0.4 s ago" in text
    assert "[pi]" in text


def test_the_headline_names_what_the_fog_waits_for() -> None:
    starting = Snapshot(elapsed_seconds=1, processes={"broker": READY, "gateway": STARTING})
    assert starting.headline == "starting gateway"

    waiting = Snapshot(
        elapsed_seconds=2,
        processes={"gateway": READY},
        readiness=Readiness(ready=False, reason="2 of 6 devices have measured"),
    )
    assert waiting.headline == "2 of 6 devices have measured"

    crashed = Snapshot(
        elapsed_seconds=3,
        processes={"gateway": READY, "pi": ProcessState.RESTARTING},
        details={"pi": "ended with exit code 3; starts again in 1 s"},
        readiness=waiting.readiness,
    )
    assert crashed.headline == "pi ended with exit code 3; starts again in 1 s"


def test_every_step_forward_counts_as_an_advance() -> None:
    snapshots = [
        Snapshot(elapsed_seconds=0, processes={"a": STARTING}),
        Snapshot(elapsed_seconds=0, processes={"a": READY}),
        Snapshot(elapsed_seconds=0, processes={"a": READY}, devices=[{"state": "ready"}]),
        Snapshot(
            elapsed_seconds=0,
            processes={"a": READY},
            devices=[{"state": "ready", "loaded_bytes": 1}],
        ),
        Snapshot(
            elapsed_seconds=0,
            processes={"a": READY},
            devices=[{"state": "ready", "loaded_bytes": 5_000_000_000}],
        ),
    ]
    advances = [snapshot.advance for snapshot in snapshots]
    assert advances == sorted(set(advances))


def test_patience_ends_after_a_time_without_progress_not_after_a_time() -> None:
    patience = Patience(10, now=0)
    assert not patience.is_out(0.1, now=9)
    assert not patience.is_out(0.2, now=18)
    # Falling back and catching up again, as a child that crashes does, is no progress.
    assert not patience.is_out(0.1, now=20)
    assert not patience.is_out(0.2, now=25)
    assert patience.is_out(0.2, now=29)


def test_what_has_lasted_in_one_state_has_come_to_a_standstill() -> None:
    standstill = Standstill(6)
    assert not standstill.has_lasted(("no plan", 3.0), now=0)
    assert not standstill.has_lasted(("no plan", 3.0), now=5)
    # Something was loaded.
    assert not standstill.has_lasted(("no plan", 3.5), now=6)
    assert not standstill.has_lasted(None, now=9)
    assert not standstill.has_lasted(("no plan", 3.5), now=20)
    assert standstill.has_lasted(("no plan", 3.5), now=26)


NO_PLAN = {"planner_problem": "no plan: 6.4 MB are missing"}
HEALS = {"pi": "it said nothing for 60 s while loading"}
MEASURED = tuple({"id": name, "state": "ready", "memory_bytes": 9} for name in ("pi", "pj"))


@pytest.mark.parametrize(
    ("details", "devices", "is_final"),
    [
        (NO_PLAN, MEASURED, True),
        (NO_PLAN, MEASURED[:1], False),
        (NO_PLAN, (*MEASURED[:1], {"id": "pj", "memory_bytes": None}), False),
        ({"planner_problem": "waiting for devices: 1 of 2 profiles"}, MEASURED, False),
        ({"planner_problem": f"pi failed to load: x; {NO_PLAN['planner_problem']}"}, (), False),
        ({"load_errors": {"pi": "tensor a.b has shape (1,)"}}, (), True),
        ({"load_errors": {"pi": "model m has no tensor a.b"}}, (), True),
        ({"load_errors": HEALS}, (), False),
        ({"checkpoint_problems": ["tensors missing: a.b"]}, MEASURED, True),
        ({"checkpoint_problems": ["tensors missing: a.b"]}, MEASURED[:1], False),
        ({"checkpoint_problems": []}, MEASURED, False),
        ({}, MEASURED, False),
    ],
)
def test_waiting_is_in_vain_for_a_damaged_checkpoint_or_when_all_devices_are_too_small(
    details: dict[str, Any], devices: tuple[dict[str, Any], ...], is_final: bool
) -> None:
    readiness = Readiness(ready=False, reason="the whole reason", details=details)
    snapshot = Snapshot(elapsed_seconds=1, readiness=readiness, devices=devices)
    assert (final_reason(snapshot, {"pi", "pj"}) is not None) is is_final


def test_a_fog_that_is_ready_or_silent_is_not_hopeless() -> None:
    ready = Readiness(ready=True, reason="ready", details=NO_PLAN)
    assert final_reason(Snapshot(elapsed_seconds=1, readiness=ready), ()) is None
    assert final_reason(Snapshot(elapsed_seconds=1), ()) is None


def test_a_long_reason_is_cut_to_a_line_at_the_end_of_a_part() -> None:
    def brief(reason: str) -> str:
        return Snapshot(elapsed_seconds=1, readiness=Readiness(ready=False, reason=reason)).brief

    assert brief("loading") == "loading"
    assert brief(f"tensors are missing; download them again ({'x' * 99})") == (
        "tensors are missing ..."
    )
    assert brief("word " * 30) == "word " * 18 + "word ..."


def test_without_a_terminal_each_change_is_one_line() -> None:
    shown, output = console()
    display = make_display(shown, live=True)
    assert isinstance(display, PlainDisplay)
    for reason in ("measuring", "measuring", "loading [x]"):
        display.update(
            Snapshot(elapsed_seconds=1.5, readiness=Readiness(ready=False, reason=reason))
        )
    assert output.getvalue().splitlines() == ["   1.5 s  measuring", "   1.5 s  loading [x]"]


def test_in_a_log_bytes_alone_make_a_line_only_every_few_seconds() -> None:
    shown, output = console()
    display = PlainDisplay(shown)
    for seconds, reason in (
        (1.0, "loading: 0 of 2 are ready, 3.2 MB of 1.6 GB"),
        (1.2, "loading: 0 of 2 are ready, 24.8 MB of 1.6 GB"),
        (1.4, "loading: 1 of 2 are ready, 30 MB of 1.6 GB"),
        (1.6, "loading: 1 of 2 are ready, 1.0 GB of 1.6 GB"),
        (6.5, "loading: 1 of 2 are ready, 1.5 GB of 1.6 GB"),
    ):
        readiness = Readiness(ready=False, reason=reason)
        display.update(Snapshot(elapsed_seconds=seconds, readiness=readiness))
    starts = [line.split()[0] for line in output.getvalue().splitlines()]
    assert starts == ["1.0", "1.4", "6.5"]


def test_on_a_terminal_every_process_has_a_row_that_disappears_in_the_end() -> None:
    shown, output = console(terminal=True)
    display = make_display(shown, live=True)
    assert isinstance(display, LiveDisplay)
    display.update(
        Snapshot(
            elapsed_seconds=3,
            processes={"broker": READY, "pi": READY},
            readiness=Readiness(ready=False, reason="loading", progress=0.5),
            devices=[{"id": "pi", "load_state": "loading", "loaded_bytes": 1, "total_bytes": 4}],
        )
    )
    display.close()
    text = output.getvalue()
    assert "loads 1 B of 4 B" in text
    assert "3 s  loading (50%)" in text


@pytest.mark.parametrize(
    ("device", "text"),
    [
        (None, ""),
        ({"state": "ready"}, "ready"),
        ({"state": "ready", "load_state": "measuring"}, "measuring"),
        ({"load_state": "loaded"}, "joined"),
        ({"load_state": "loaded", "memory_bytes": 9}, "measured"),
        ({"load_state": "loaded", "memory_bytes": 9, "loaded_bytes": 2048}, "holds 2.0 KiB"),
        (
            {
                "load_state": "loading",
                "loaded_bytes": 1024,
                "total_bytes": 2048,
                "sources": [
                    {"source": "gateway fog:8080", "num_bytes": 24},
                    {"source": "neighbour pi", "num_bytes": 1000},
                ],
            },
            "loads 1.0 KiB of 2.0 KiB from neighbour pi",
        ),
        ({"load_state": "failed", "error": "tensor x is damaged"}, "tensor x is damaged"),
    ],
)
def test_a_device_says_in_a_few_words_how_far_it_is(
    device: dict[str, object] | None, text: str
) -> None:
    assert device_text(device) == text


def test_the_welcome_shows_plan_question_and_a_curl_line_that_a_shell_can_read() -> None:
    shown, output = console()
    print_welcome(shown, PLAN, 12.34, "What's [bold]?")
    print_next_steps(
        shown, "http://127.0.0.1:8081", "tiny", "What's [bold]?", "source [x]/activate"
    )
    text = output.getvalue()
    assert "Ready after 12.3 s." in text
    assert "What's [bold]?" in text
    assert "in another terminal, after `source [x]/activate`:" in text
    assert "e2llm chat --url http://127.0.0.1:8081" in text

    words = shlex.split(curl_line("http://127.0.0.1:8081", "tiny", "What's [bold]?"))
    assert words[:2] == ["curl", "http://127.0.0.1:8081/v1/chat/completions"]
    assert json.loads(words[-1])["messages"][0]["content"] == "What's [bold]?"


def test_a_fog_that_has_keys_is_asked_with_one() -> None:
    shown, output = console()
    print_next_steps(shown, "http://127.0.0.1:8080", "tiny", "Hello?", None, needs_key=True)
    assert '-H "Authorization: Bearer $E2LLM_API_KEY"' in output.getvalue()
    assert "need an API key in E2LLM_API_KEY" in output.getvalue()

    shown, output = console()
    print_next_steps(shown, "http://127.0.0.1:8080", "tiny", "Hello?", None)
    assert "E2LLM_API_KEY" not in output.getvalue()


def test_a_shell_that_does_not_find_the_command_is_told_how_to(tmp_path: Path) -> None:
    folder = tmp_path / "with space" / "bin"
    folder.mkdir(parents=True)
    (folder / "activate").touch()
    (folder / "e2llm").touch(mode=0o755)

    assert activation(folder.parent, "/nowhere") == f"source '{folder}/activate'"
    assert activation(folder.parent, f"/nowhere:{folder}") is None
    assert activation(tmp_path, "/nowhere") is None


def test_figures_leave_out_a_rate_that_one_token_cannot_have() -> None:
    one = Answer(text="a", token_ids=[1], ttft_seconds=0.2, tpot_seconds=None)
    many = Answer(text="abc", token_ids=[1, 2, 3], ttft_seconds=0.2, tpot_seconds=0.05)
    assert answer_figures(one) == "TTFT 200 ms, 1 tokens"
    assert answer_figures(many) == "TTFT 200 ms, 20.0 tokens/s, 3 tokens"

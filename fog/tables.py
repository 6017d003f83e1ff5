"""Plan and devices as tables for a terminal. From the gateway's JSON to rich; no I/O.

Lenient about fields: a table may also be drawn from the answer of a newer or older fog.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fog.quantities import format_bytes, format_seconds

Json = Mapping[str, Any]

_ROLE_STYLES: Final = {"prefill": "cyan", "decode": "green", "both": "magenta"}


def plan_view(plan: Json) -> RenderableType:
    """Return the plan as a table, with what it predicts and measures below it."""
    lines = [
        *_idle_lines(plan.get("idle") or ()),
        *_rate_lines(plan),
    ]
    if problem := plan.get("arithmetic_problem"):
        lines.append(Text(f"warning: {problem}", style="yellow"))
    others = [
        view
        for part in plan.get("others") or ()
        for view in (_other_title(part), _plan_table(part))
    ]
    return Group(_title(plan), _plan_table(plan), *lines, *others)


def devices_table(devices: Sequence[Json]) -> Table:
    """Return one row per device of the fog."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("device", "state", "stages"):
        table.add_column(column)
    for column in ("in memory", "tensors", "last seen", "pid"):
        table.add_column(column, justify="right")
    for device in devices:
        seen = device.get("last_seen_seconds")
        table.add_row(
            Text(str(device.get("id", "?"))),
            Text(_state_text(device), style=_state_style(device)),
            ", ".join(device.get("stages") or ()) or "-",
            format_bytes(device.get("loaded_bytes") or 0),
            str(_count(device.get("tensors"))),
            "-" if seen is None else f"{seen:.1f} s ago",
            str(device.get("pid") or "-"),
        )
    return table


def models_table(models: Sequence[Json]) -> Table:
    """Return one row per model of the fog."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "weights", "size", "in use", "state"):
        table.add_column(column)
    for model in models:
        size = model.get("num_bytes")
        table.add_row(
            Text(str(model.get("name", "?"))),
            str(model.get("weights", "?")),
            "-" if size is None else format_bytes(size),
            "yes" if model.get("in_use") else "-",
            Text(_model_state(model)),
        )
    return table


def model_line(model: Json) -> str:
    """Return a model and how far the fog is with it, in one line."""
    return f"{model.get('name', '?')}: {_model_state(model)}"


def _model_state(model: Json) -> str:
    progress = model.get("progress")
    share = "" if progress is None else f" ({progress:.0%})"
    detail = f", {model['detail']}" if model.get("detail") else ""
    return f"{model.get('state', '?')}{detail}{share}"


def layers_text(stage: Json) -> str:
    """Return a stage's layers, first and last, with embedding and head where it has them."""
    start, end = stage["layers"]
    parts = [f"{start}-{end - 1}" if end - start > 1 else f"{start}"]
    if stage.get("embedding"):
        parts.insert(0, "embedding")
    if stage.get("head"):
        parts.append("head")
    return " + ".join(parts)


def _title(plan: Json) -> Text:
    title = f"Plan {plan.get('version', '?')} ({plan.get('state', '?')}): {plan.get('model', '')}"
    if plan.get("version") == 0:
        # Of no running fog: versions begin with 1.
        title = f"Plan: {plan.get('model', '')}"
    if weights := plan.get("weights"):
        title += f", {weights}"
    if optimality := plan.get("optimality"):
        title += f", {optimality}"
    return Text(title, "bold")


def _other_title(part: Json) -> Text:
    """Return the title of a plan for another model of the fog."""
    leaving = ", leaves when its requests have ended" if part.get("leaving") else ""
    return Text(f"Beside it: {part.get('model', '?')}, {part.get('weights', '?')}{leaving}", "bold")


def _plan_table(plan: Json) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    measured: Json = (plan.get("measured") or {}).get("replicas") or {}
    rates = {replica_id: rates_text(rates) for replica_id, rates in measured.items()}
    has_rates = any(rates.values())
    has_measured = any(
        stage_text(stage) for r in plan.get("replicas") or () for stage in r["stages"]
    )
    for column in ("replica", "role", "device", "layers"):
        table.add_column(column, no_wrap=True)
    table.add_column("predicted", justify="right")
    if has_measured:
        table.add_column("measured, and by how much it is longer")
    if has_rates:
        table.add_column("requests had")
    for replica in plan.get("replicas") or ():
        role = str(replica.get("role", "?"))
        for index, stage in enumerate(replica["stages"]):
            first = index == 0
            cells: list[RenderableType] = [
                str(replica["id"]) if first else "",
                Text(role if first else "", style=_ROLE_STYLES.get(role, "")),
                str(stage["device"]),
                layers_text(stage),
                _seconds(stage.get("predicted_seconds")),
            ]
            if has_measured:
                cells.append(stage_text(stage))
            if has_rates:
                cells.append(rates.get(replica["id"], "") if first else "")
            table.add_row(*cells, end_section=index == len(replica["stages"]) - 1)
    return table


def stage_text(stage: Json) -> str:
    """Return what a stage's device measured, beside the prediction for the same rows."""
    measured: Json = stage.get("measured") or {}
    parts = []
    if decode := measured.get("decode"):
        share = _share_text(decode.get("error"))
        parts.append(
            f"{format_seconds(decode['measured_seconds'])}{share} with {decode['rows']:.1f} rows"
        )
    if prefill := measured.get("prefill"):
        share = _share_text(prefill.get("error"))
        # Tokens of shorter prompts take longer than predicted, so it is said what for.
        length = prefill.get("prompt_tokens")
        planned = f", predicted for prompts of {length}" if length is not None else ""
        parts.append(
            f"{format_seconds(prefill['measured_seconds'])}{share} per prompt token{planned}"
        )
    return ", ".join(parts)


def _share_text(error: object) -> str:
    return f" ({error:+.0%})" if isinstance(error, int | float) else ""


def _idle_lines(idle: Sequence[Json]) -> list[Text]:
    return [
        Text(f"not used: {entry['device']} ({entry.get('reason') or 'no reason given'})", "dim")
        for entry in idle
    ]


def _rate_lines(plan: Json) -> list[Text]:
    lines = []
    if text := _promise(plan.get("predicted") or {}):
        lines.append(Text(text))
    measured: Json = plan.get("measured") or {}
    if text := _demand(measured):
        window = measured.get("window_seconds")
        label = f"measured over the last {window:g} s" if window else "measured"
        lines.append(Text(f"{label}: {text}"))
    if text := _errors(plan.get("errors") or {}):
        lines.append(Text(f"measured over predicted for prompts as long as these: {text}"))
    if best := plan.get("best_single_device"):
        text = _promise(best.get("predicted") or {})
        lines.append(Text(f"best single device: {best.get('device')}, {text}", "dim"))
    return lines


def _errors(errors: Json) -> str:
    names = {
        "ttft_seconds": "TTFT",
        "tpot_seconds": "time per token",
        "requests_per_second": "requests/s",
    }
    parts = [
        f"{name}{_share_text(errors.get(key))}"
        for key, name in names.items()
        if errors.get(key) is not None
    ]
    if (stages := errors.get("stage_seconds")) is not None:
        parts.insert(0, f"decode steps of stages off by {stages:.0%} (median)")
    return ", ".join(parts)


def _promise(rates: Json) -> str:
    capacity = capacity_text(rates)
    label = "capacity (predicted at full load): " if capacity else "predicted for "
    text = _joined(capacity, "a lone request", latency_text(rates))
    return f"{label}{text}" if text else ""


def _demand(measured: Json) -> str:
    """Return what was asked for, which may be far less than the fog can serve."""
    whole = {key: rate for key, rate in measured.items() if key != "prefill_tokens_per_second"}
    each = [latency_text(measured)]
    if rate := measured.get("prefill_tokens_per_second"):
        # Of prompts that were alone in their replica, however few they were.
        each.append(f"prompts at {rate:.0f} tokens/s")
    return _joined(capacity_text(whole), "recent requests", ", ".join(filter(None, each)))


def _joined(capacity: str, whose: str, latency: str) -> str:
    return "; ".join(filter(None, [capacity, f"{whose}: {latency}" if latency else ""]))


def rates_text(rates: Json) -> str:
    """Return the rates that are known, in words."""
    return ", ".join(filter(None, [capacity_text(rates), latency_text(rates)]))


def capacity_text(rates: Json) -> str:
    """Return how much is, or can be, done in a second."""
    parts = []
    if rate := rates.get("decode_tokens_per_second"):
        parts.append(f"{rate:.1f} tokens/s decoded")
    if rate := rates.get("prefill_tokens_per_second"):
        parts.append(f"{rate:.0f} tokens/s prefilled")
    if rate := rates.get("requests_per_second"):
        good = rates.get("good_requests_per_second")
        share = "" if good is None else f" ({_rate(good)} within the targets, {good / rate:.0%})"
        parts.append(f"{_rate(rate)} requests/s{share}")
    if joules := rates.get("joules_per_token"):
        parts.append(f"{joules:.3g} J per token")
    return ", ".join(parts)


def _rate(rate: float) -> str:
    """Return two decimals, or two digits where a request takes long."""
    return f"{rate:.2f}" if rate >= 0.1 else f"{rate:.2g}"


def latency_text(rates: Json) -> str:
    """Return how long one request waits for its first token, and for each further one."""
    parts = []
    if seconds := rates.get("ttft_seconds"):
        parts.append(f"TTFT {format_seconds(seconds)}")
    if seconds := rates.get("tpot_seconds"):
        parts.append(f"{format_seconds(seconds)} per token")
    if seconds := rates.get("kv_seconds"):
        parts.append(_transfer_text(seconds, rates.get("kv_exposed_seconds") or 0.0))
    return ", ".join(parts)


def _transfer_text(seconds: float, exposed: float) -> str:
    """Return how long a prompt's KV cache is on its way, and how much of that a user waits."""
    whole, left = format_seconds(seconds), format_seconds(exposed)
    if exposed == 0.0:
        return f"KV transfer {whole} during prefill"
    if left == whole:
        return f"KV transfer {whole} after prefill"
    return f"KV transfer {whole}, {left} of it after prefill"


def _seconds(value: object) -> str:
    return format_seconds(float(value)) if isinstance(value, int | float) else "-"


def _count(value: object) -> int:
    return len(value) if isinstance(value, list | tuple) else int(str(value or 0))


def _state_text(device: Json) -> str:
    """Return the state, and what its owner asked when that limits where stages are put."""
    placement = device.get("placement") or "open"
    state = str(device.get("state", "?"))
    return state if placement == "open" else f"{state}, {placement}"


def _state_style(device: Json) -> str:
    return {"ready": "green", "lost": "red"}.get(str(device.get("state")), "yellow")

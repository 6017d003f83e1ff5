"""The dashboard and the alerts that we hand out ask for metrics that there are."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from broker.metrics import Kind, Metric
from scripts.reference import METRICS
from tests.support.documents import ROOT

DASHBOARD = ROOT / "deploy/grafana/e2llm.json"
RULES = ROOT / "deploy/prometheus/rules.yml"
TABLES = [table for _, table in METRICS.values()]
KNOWN = {metric.name: metric for table in TABLES for metric in table}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def queries() -> Iterator[tuple[str, str]]:
    for panel in panels():
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


QUERIES = list(queries())


def wrong(query: str) -> list[str]:
    """Return what a query asks for that no process tells."""
    complaints = []
    for name, labels in re.findall(r"\b(e2llm_\w+)(\{[^}]*\})?", query):
        metric = KNOWN.get(name) or KNOWN.get(re.sub(r"_(bucket|sum|count)$", "", name))
        if metric is None or (metric.kind is Kind.HISTOGRAM) == (name == metric.name):
            complaints.append(f"no metric {name}")
            continue
        asked = set(re.findall(r"(\w+)\s*[=!]", labels))
        complaints += [f"{name} has no label {label}" for label in asked - set(metric.labels)]
        if metric.kind is Kind.COUNTER and not re.search(
            rf"(rate|increase)\({re.escape(name + labels)}\[", query
        ):
            complaints.append(f"{name} only grows; ask for its rate")
    return complaints


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[f"{t}: {q}" for t, q in QUERIES])
def test_every_query_asks_for_what_some_process_tells(title: str, query: str) -> None:
    assert "e2llm_" in query
    assert wrong(query) == []


@pytest.mark.parametrize(
    "query",
    [
        "sum(e2llm_nonsense)",
        'e2llm_devices{kind="lost"}',
        "e2llm_prompt_tokens_total",
        "rate(e2llm_time_to_first_token_seconds[5m])",
        "e2llm_ready_count",
    ],
)
def test_a_query_for_nothing_is_found(query: str) -> None:
    assert wrong(query)


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_alert_says_how_bad_it_is_and_what_to_look_at() -> None:
    for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in {"warning", "critical"}
            assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.parametrize("table", TABLES, ids=list(METRICS))
def test_names_are_prometheus_names_with_their_kind_at_the_end(table: tuple[Metric, ...]) -> None:
    names = [metric.name for metric in table]
    assert len(set(names)) == len(names)
    for metric in table:
        assert re.fullmatch(r"e2llm_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.text
        assert not metric.text.endswith(".")
        # Whoever reads the text sees each label explained.
        unexplained = {"direction"} if metric.name == "e2llm_bus_payload_bytes_total" else set()
        assert all(f"`{label}`" in metric.text for label in set(metric.labels) - unexplained)


def test_no_label_takes_values_from_outside() -> None:
    labels = {label for metric in KNOWN.values() for label in metric.labels}
    assert labels == {"direction", "finished_reason", "kind", "outcome", "role", "source", "state"}


def test_the_compose_file_tells_metrics_within_its_network_only() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    assert compose["services"]["planner"]["environment"]["E2LLM_PLANNER_METRICS"]
    assert compose["services"]["laptop"]["environment"]["E2LLM_NODE_METRICS"]
    published = {name: s["ports"] for name, s in compose["services"].items() if "ports" in s}
    assert set(published) == {"gateway"}

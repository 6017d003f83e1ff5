"""Write the pages of `docs/reference/` that follow from the code: ``python scripts/reference.py``.

Settings come from the classes that read them, topics and messages from `broker.topics`. A test
compares what is in the repository with what this would write.
"""

from __future__ import annotations

import inspect
import json
import sys
import typing
from pathlib import Path
from typing import Any, Final, cast

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from broker.control import PROTOCOL_VERSION, Control
from broker.metrics import Metric
from broker.settings import Described, described
from broker.topics import ALL_TOPICS, PREFIX, Topic
from gateway import metrics as gateway_metrics
from gateway.settings import PREFIX as GATEWAY_PREFIX
from gateway.settings import Settings
from nodes import metrics as node_metrics
from nodes.settings import PREFIX as NODE_PREFIX
from nodes.settings import NodeSettings
from planner.live import metrics as planner_metrics
from planner.live.settings import PlannerSettings

FOLDER: Final = Path(__file__).parent.parent / "docs" / "reference"
PLANNER_PREFIX: Final = "E2LLM_PLANNER_"
MADE: Final = "<!-- Written by scripts/reference.py; change the code and run it again. -->\n"

_TITLE: Final = "E2LLM on the bus"

# Their messages are of different types.
TOPICS: Final = cast("tuple[Topic[Any], ...]", ALL_TOPICS)

# Who publishes to whom; what the broker's access rules hold everyone to (broker/access.py).
ROUTES: Final = {
    "models/{model}": ("gateway", "planner, nodes, gateways"),
    "devices/{device}/status": ("node; its last will", "all"),
    "devices/{device}/profile": ("node", "planner, gateways"),
    "devices/{device}/assignment": ("planner", "that node"),
    "devices/{device}/control": ("gateway, for the device's owner", "planner, gateways"),
    "devices/{device}/loaded": ("node", "planner, gateways"),
    "devices/{device}/tensors": ("node", "nodes"),
    "plan": ("planner", "nodes, gateways"),
    "plan/history": ("planner", "gateways"),
    "planner/status": ("planner; its last will", "gateways"),
    "gateways/{gateway}/status": ("gateway; its last will", "all"),
    "gateways/{gateway}/what-if": ("gateway", "planner"),
    "planner/what-if/{gateway}": ("planner", "that gateway"),
    "devices/{device}/telemetry": ("node, or any IoT agent", "planner, gateways"),
    "replicas/{replica}/stages/{stage}/to/{device}/from/{sender}/work": (
        "gateways and nodes",
        "the node that holds the stage",
    ),
    "replicas/{replica}/stages/{stage}/to/{device}/from/{sender}/kv": ("node", "node"),
    "replicas/{replica}/stages/{stage}/to/{device}/from/{sender}/credit": ("node", "node"),
    "gateways/{gateway}/from/{sender}/events": ("node", "that gateway"),
    "prompts/{client}": ("application", "one gateway"),
    "replies/{client}/{request}": ("gateway", "that application"),
    "home-assistant/fog": ("gateway, where it shows the fog", "Home Assistant"),
    "home-assistant/devices/{device}": ("gateway, where it shows the fog", "Home Assistant"),
    "home-assistant/gateways/{gateway}": ("gateway, where it shows the fog", "Home Assistant"),
    "home-assistant/devices/{device}/cordon": ("Home Assistant", "gateways"),
}

# Of topics whose message is described elsewhere: what it is, and where.
_ELSEWHERE: Final = {
    "prompts/{client}": "JSON, see [prompts](../mqtt-api.md)",
    "replies/{client}/{request}": "JSON, see [prompts](../mqtt-api.md)",
    "home-assistant/fog": "JSON, see [Home Assistant](../guides/home-assistant.md)",
    "home-assistant/devices/{device}": "JSON, see [Home Assistant](../guides/home-assistant.md)",
    "home-assistant/gateways/{gateway}": "JSON, see [Home Assistant](../guides/home-assistant.md)",
    "home-assistant/devices/{device}/cordon": "`ON` or `OFF`",
}


def pages() -> dict[str, str]:
    """Return the name and text of each page."""
    return {
        "settings.md": settings_page(),
        "topics.md": topics_page(),
        "metrics.md": metrics_page(),
        "asyncapi.json": json.dumps(asyncapi(), indent=1, ensure_ascii=False) + "\n",
    }


# --- settings -----------------------------------------------------------------------------


def settings_page() -> str:
    """Return every setting of every process."""
    parts = [
        MADE,
        "# Settings\n",
        "Each process reads its settings from the environment, once, when it starts; `--help` "
        "of each lists them. `<NAME>_FILE` may name a file with the value instead, as containers "
        "mount secrets. A name that is not known, or a value that cannot be read, ends the "
        "process with one line.\n",
    ]
    for program, prefix, cls, text in (
        ("python -m nodes", NODE_PREFIX, NodeSettings, "A device that holds layers."),
        ("python -m gateway", GATEWAY_PREFIX, Settings, "The HTTP API."),
        ("python -m planner", PLANNER_PREFIX, PlannerSettings, "Who gets which layers."),
    ):
        rows = "\n".join(map(_setting_row, described(cls, prefix)))
        parts.append(
            f"## `{program}`\n\n{text}\n\n"
            f"| variable | default | meaning |\n| --- | --- | --- |\n{rows}\n"
        )
    parts.append(
        "The broker's process, `python -m broker`, has options instead; see its `--help`. Traces "
        "of a gateway's requests have OpenTelemetry's own variables: [traces](../traces.md).\n"
    )
    return "\n".join(parts)


def _setting_row(setting: Described) -> str:
    default = "**required**" if setting.default is None else setting.default or "not set"
    shown = default if default in ("not set", "**required**") else f"`{default}`"
    return f"| `{setting.variable}` | {shown} | {_cell(setting.text)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("``", "`")


# --- metrics ------------------------------------------------------------------------------


METRICS: Final[dict[str, tuple[str, tuple[Metric, ...]]]] = {
    "Gateway": ("`GET /metrics` of the HTTP API.", gateway_metrics.TABLE),
    "Planner": ("At `E2LLM_PLANNER_METRICS`, as of the last 2 s.", planner_metrics.TABLE),
    "Node": (
        "At `E2LLM_NODE_METRICS`, as of the last 2 s. What a device cannot measure is left out.",
        node_metrics.TABLE,
    ),
}


def metrics_page() -> str:
    """Return every metric of every process."""
    parts = [
        MADE,
        "# Metrics\n",
        "What each process says to Prometheus; [metrics](../metrics.md) tells how to read them, "
        "with a dashboard and alerts. Sizes are in bytes, times in seconds. No label has more "
        "values than a fog has kinds of things.\n",
    ]
    for process, (text, table) in METRICS.items():
        rows = "\n".join(map(_metric_row, table))
        parts.append(
            f"## {process}\n\n{text}\n\n"
            f"| metric | type | meaning | elsewhere |\n| --- | --- | --- | --- |\n{rows}\n"
        )
    return "\n".join(parts)


def _metric_row(metric: Metric) -> str:
    labels = f"{{{', '.join(metric.labels)}}}" if metric.labels else ""
    alike = ", ".join(f"`{name}`" for name in metric.alike.split(", ") if name)
    return f"| `{metric.name}{labels}` | {metric.kind.value} | {_cell(metric.text)} | {alike} |"


# --- topics -------------------------------------------------------------------------------


def topics_page() -> str:
    """Return all topics with sender, receiver and message."""
    rows = "\n".join(
        f"| `{topic.template}` | {sender} | {receiver} | {_message_text(topic)} "
        f"| {topic.qos.value} | {'yes' if topic.retained else ''} |"
        for topic, (sender, receiver) in zip(TOPICS, _routes(), strict=True)
    )
    return "\n".join(
        [
            MADE,
            "# Topics and messages\n",
            f"All topics begin with `{PREFIX}/<site>/` (the site of `e2llm up` is `local`). "
            f"Protocol {PROTOCOL_VERSION}; a device of another major version is left out of "
            "plans, minor versions work together.\n",
            "| topic | from | to | message | QoS | retained |",
            "| --- | --- | --- | --- | --- | --- |",
            rows,
            "\nControl messages are JSON. Frames are binary: a fixed prefix, a header in "
            "MessagePack, and for some the raw bytes of a tensor (`broker/codec.py`). "
            "[asyncapi.json](asyncapi.json) has all of it as AsyncAPI 3, with a JSON Schema of "
            "every message and header. What devices may report beside that is in "
            "[telemetry](../telemetry.md), what applications publish in "
            "[prompts over MQTT](../mqtt-api.md).\n",
            "## Messages\n",
            *[
                f"### {name}\n\n{_first_paragraph(message)}\n"
                for name, message in sorted(_control_messages().items())
            ],
        ]
    )


def _routes() -> list[tuple[str, str]]:
    return [ROUTES[topic.template] for topic in TOPICS]


def _message_text(topic: Topic[Any]) -> str:
    if topic.message is bytes:
        return _ELSEWHERE[topic.template]
    if _is_control(topic.message):
        return f"[{topic.message.__name__}](#{topic.message.__name__.lower()})"
    return "a frame: " + ", ".join(message.__name__ for message in _headers(topic))


def _is_control(message: Any) -> bool:
    return isinstance(message, type) and issubclass(message, Control)


def _headers(topic: Topic[Any]) -> list[type[Any]]:
    return list(typing.get_args(topic.message)) or [topic.message]


def _control_messages() -> dict[str, type[Any]]:
    return {t.message.__name__: t.message for t in TOPICS if _is_control(t.message)}


def _first_paragraph(message: type[Any]) -> str:
    text = (inspect.getdoc(message) or "").partition("\n\n")[0]
    return _cell(" ".join(text.split()))


# --- AsyncAPI -----------------------------------------------------------------------------


def asyncapi() -> dict[str, Any]:
    """Return topics and messages as an AsyncAPI 3.0 document."""
    channels, operations = {}, {}
    wanted: dict[str, type[Any]] = {}
    for topic, (sender, receiver) in zip(TOPICS, _routes(), strict=True):
        carried = [] if topic.message is bytes else _headers(topic)
        wanted |= {message.__name__: message for message in carried}
        name = _channel_name(topic)
        channels[name] = {
            "address": f"{PREFIX}/{{site}}/{topic.template}",
            "description": f"From {sender} to {receiver}.",
            "parameters": {level: {} for level in ["site", *_levels(topic)]},
            "messages": {
                message.__name__: {"$ref": f"#/components/messages/{message.__name__}"}
                for message in carried
            },
            "bindings": {"mqtt": {"bindingVersion": "0.2.0"}},
        }
        operations[f"publish-{name}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{name}"},
            "bindings": {"mqtt": {"qos": topic.qos.value, "retain": topic.retained}},
        }
    found, schemas = msgspec.json.schema_components(
        list(wanted.values()), ref_template="#/components/schemas/{name}"
    )
    messages = {
        name: {
            "contentType": "application/json"
            if issubclass(message, Control)
            else "application/octet-stream",
            "description": _first_paragraph(message),
            "payload": schema,
        }
        for (name, message), schema in zip(wanted.items(), found, strict=True)
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": _TITLE,
            "version": PROTOCOL_VERSION,
            "description": "Of a frame, the schema is that of its header.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


def _channel_name(topic: Topic[Any]) -> str:
    levels = [level for level in topic.template.split("/") if not level.startswith("{")]
    return "-".join(level for level in levels if level not in ("to", "from"))


def _levels(topic: Topic[Any]) -> list[str]:
    return [level[1:-1] for level in topic.template.split("/") if level.startswith("{")]


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()

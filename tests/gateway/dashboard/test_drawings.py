"""Pictures and tables of the dashboard as text: what is in them, where, and what is escaped."""

import asyncio
import itertools
import math
import random
from typing import Any
from xml.etree import ElementTree

import pytest

from broker.control import DeviceState
from broker.plan import Role
from gateway.dashboard import svg
from gateway.dashboard.devices import device_facts, devices_table, owner_text, plots
from gateway.dashboard.fog import fog_facts
from gateway.dashboard.history import History, Point, record
from gateway.dashboard.layout import Place, Size, flow, shares
from gateway.dashboard.panels import BOX, device_box
from gateway.dashboard.picture import NARROW, describe, fog_picture
from gateway.dashboard.plans import decisions_table, rates_table, stages_table
from gateway.dashboard.plot import plot, runs, scale
from gateway.dashboard.words import figure, seconds
from gateway.fogview import FogView
from tests.support.shown_fog import DEVICES, ShownFog, plan_of, replica

SVG = "{http://www.w3.org/2000/svg}"


def parsed(text: str) -> ElementTree.Element:
    """Return a picture as XML, which is stricter than a browser."""
    return ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '))


def drawn(fog: ShownFog, width: int = 1200) -> ElementTree.Element:
    return parsed(fog_picture(fog.fog_plan(), fog.devices(), width))


def texts(root: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{SVG}text")]


def boxes(root: ElementTree.Element) -> dict[str, ElementTree.Element]:
    return {g.attrib["data-device"]: g for g in root.iter(f"{SVG}g") if "data-device" in g.attrib}


def corners(root: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """Return where each device's box is, transformations of its ancestors added up."""
    found: dict[str, tuple[float, float]] = {}

    def visit(node: ElementTree.Element, x: float, y: float) -> None:
        move = node.attrib.get("transform")
        if move is not None:
            dx, dy = move.removeprefix("translate(").removesuffix(")").split()
            x, y = x + float(dx), y + float(dy)
        if "data-device" in node.attrib:
            found[node.attrib["data-device"]] = (x, y)
        for child in node:
            visit(child, x, y)

    visit(root, 0.0, 0.0)
    return found


# --- the fog ----------------------------------------------------------------------------------


def test_every_device_of_the_fog_is_drawn_with_its_layers_and_live_figures() -> None:
    fog = ShownFog()
    found = boxes(drawn(fog))
    assert set(found) == set(DEVICES)
    assert texts(found["jetson"]) == [
        "jetson",
        "layers 0–7",
        "load 41 %, queue 2",
        "13.2 tokens/s",
    ]


def test_a_device_that_only_prefills_shows_no_rate_of_answers() -> None:
    assert texts(boxes(drawn(ShownFog()))["mini-pc"])[3] == ""


def test_a_device_without_a_stage_stands_apart_with_the_reason() -> None:
    found = drawn(ShownFog())
    assert "Not in the plan: 1 device" in texts(found)
    box = boxes(found)["pi4-cellar"]
    assert box.attrib["class"] == "device idle is-ready"
    assert "fast enough" in (box.findtext(f"{SVG}title") or "")


def test_a_role_is_said_in_words_beside_its_colour() -> None:
    words = " ".join(texts(drawn(ShownFog())))
    assert "prefill r-3f9a1c22d0" in words
    assert "decode r-81b7e0aa45" in words


def test_a_lost_device_is_marked_and_its_replica_is_incomplete() -> None:
    fog = ShownFog()
    fog.say("laptop", DeviceState.LOST)
    found = drawn(fog)
    box = boxes(found)["laptop"]
    assert "is-lost" in box.attrib["class"]
    assert "lost" in texts(box)
    assert any(text.startswith("incomplete") for text in texts(found))


def test_who_cannot_see_the_picture_reads_every_device_and_its_state() -> None:
    fog = ShownFog()
    fog.say("laptop", DeviceState.LOST)
    said = describe(fog.fog_plan(), fog.devices())
    assert "prefill replica r-3f9a1c22d0: mini-pc (layers 0–11, ready) to laptop (" in said
    assert "laptop (layers 12–23, lost)" in said


def test_before_a_plan_devices_are_drawn_alone() -> None:
    fog = ShownFog()
    fog.view = fog.view.__class__()
    fog.say("pi")
    found = drawn(fog)
    assert set(boxes(found)) == {"pi"}
    assert describe(fog.fog_plan(), fog.devices()) == "No plan yet."


@pytest.mark.parametrize("width", [320, 380, 700, int(NARROW), 1200, 1440])
def test_boxes_are_inside_the_picture_and_never_on_each_other(width: int) -> None:
    rng = random.Random(width)
    fog = ShownFog()
    names = [f"device-{number}" for number in range(40)]
    for name in names:
        fog.say(name)
    replicas, rest = [], list(names[:34])
    while rest:
        count = min(rng.randint(1, 6), len(rest))
        role = rng.choice(list(Role))
        replicas.append(replica(f"r-{len(rest):010}", role, rest[:count]))
        rest = rest[count:]
    fog.adopt(plan_of(2, *replicas))
    root = drawn(fog, width)
    placed = corners(root)
    assert set(placed) == set(names) | set(DEVICES)
    height = float(root.attrib["height"])
    for x, y in placed.values():
        assert 0 <= x <= width - BOX.width
        assert 0 <= y <= height - BOX.height
    for one in placed:
        for other in placed:
            if one < other:
                apart_x = abs(placed[one][0] - placed[other][0]) >= BOX.width
                assert apart_x or abs(placed[one][1] - placed[other][1]) >= BOX.height


def test_decode_is_right_of_prefill_where_there_is_room_and_below_it_on_a_phone() -> None:
    wide, narrow = corners(drawn(ShownFog(), 1200)), corners(drawn(ShownFog(), 370))
    assert wide["jetson"][0] > wide["laptop"][0]
    assert narrow["jetson"][1] > narrow["laptop"][1]


def test_a_name_is_text_whatever_is_in_it() -> None:
    fog = ShownFog()
    fog.say('<script>alert("x")</script>&')
    text = fog_picture(fog.fog_plan(), fog.devices(), 1200)
    assert "<script" not in text
    assert '<script>alert("x")</script>&' in boxes(parsed(text))
    assert "<script" not in devices_table(fog.devices(), fog.fog_plan())


def test_a_long_name_is_cut_and_whole_in_the_hint() -> None:
    fog, name = ShownFog(), "raspberry-pi-5-on-the-shelf-in-the-hall"
    fog.say(name)
    box = boxes(drawn(fog))[name]
    assert texts(box)[0].endswith("…")
    assert name in (box.findtext(f"{SVG}title") or "")


def test_a_device_that_loads_says_how_far_it_is() -> None:
    telemetry = {"tokens_per_second": 0.5}
    device = {"id": "pi", "state": "ready", "telemetry": telemetry, "placement": "draining"}
    loading = device | {"load_state": "loading", "progress": 0.43}
    stage = {"device": "pi", "layers": [3, 4]}
    words = texts(parsed(f"<svg >{device_box(loading, stage, 'decode').content}</svg>"))
    assert words == ["pi", "layer 3", "loading 43 %", "draining, 0.5 token…"]


# --- geometry ---------------------------------------------------------------------------------


def test_boxes_that_fit_share_a_row() -> None:
    found = flow([Size(40, 10), Size(40, 30), Size(40, 20)], 100.0, Size(10, 5))
    assert found.places == (Place(0, 0), Place(50, 0), Place(0, 35))
    assert (found.width, found.height) == (90, 55)


def test_a_box_wider_than_the_picture_has_a_row_for_itself() -> None:
    found = flow([Size(40, 10), Size(400, 10), Size(40, 10)], 100.0, Size(10, 5))
    assert [place.y for place in found.places] == [0, 15, 30]


def test_columns_fill_the_width_by_weight_and_none_is_too_narrow() -> None:
    found = shares([1.0, 3.0], 1000.0, gap=60.0, least=300.0)
    assert sum(found) == pytest.approx(940.0)
    assert found == pytest.approx([385.0, 555.0])


# --- plots ------------------------------------------------------------------------------------


def test_an_axis_has_round_ticks_and_holds_every_value() -> None:
    rng = random.Random(5)
    for _ in range(200):
        values = [rng.uniform(-50, 1000) * 10.0 ** rng.randint(-3, 6) for _ in range(4)]
        low, high, ticks = scale(values)
        least = 1e-6 * (high - low)
        assert low <= min(0.0, *values) + least
        assert high >= max(0.0, *values) - least
        assert ticks[0] == low
        assert ticks[-1] == pytest.approx(high)
        assert 2 <= len(ticks) <= 6


def test_an_axis_of_zeros_has_a_height() -> None:
    low, high, _ = scale([0.0, 0.0])
    assert low == 0.0 < high


def test_a_silence_is_a_gap_in_the_line() -> None:
    points = [Point(0, 1), Point(5, 2), Point(60, 3)]
    assert runs(points, gap_seconds=20) == [points[:2], points[2:]]


def test_a_plot_says_its_range_and_its_latest_value() -> None:
    points = [Point(10.0, 20.0), Point(20.0, 80.0), Point(30.0, 45.0)]
    root = parsed(plot("Load", "%", points, now=30, span_seconds=60, gap_seconds=15, width=400))
    assert "45 %" in texts(root)
    assert root.findtext(f"{SVG}desc") == "From 20 to 80 %, 45 % last."


def test_a_plot_without_points_says_so() -> None:
    root = parsed(plot("Load", "%", [], now=30, span_seconds=60, gap_seconds=15, width=400))
    assert "not reported" in texts(root)


def test_a_history_keeps_the_latest_samples_and_forgets_devices_that_are_gone() -> None:
    history = History(num_samples=3)
    for now in range(5):
        device = {"id": "pi", "state": "ready", "telemetry": {"cpu_load_ratio": now / 10}}
        history.take(float(now), [device])
    found = history.points("pi", "cpu_load_ratio")
    assert [point.at for point in found] == [2.0, 3.0, 4.0]
    assert [point.value for point in found] == pytest.approx([0.2, 0.3, 0.4])
    history.take(5.0, [])
    assert history.points("pi", "cpu_load_ratio") == []


def test_a_device_that_is_away_leaves_a_gap_in_its_history() -> None:
    history = History(num_samples=4)
    for now, state in enumerate(["ready", "lost", "ready"]):
        telemetry = {"cpu_load_ratio": 0.5, "temperature_celsius": None}
        history.take(float(now), [{"id": "pi", "state": state, "telemetry": telemetry}])
    assert [point.at for point in history.points("pi", "cpu_load_ratio")] == [0.0, 2.0]
    assert history.points("pi", "temperature_celsius") == []


def test_plots_stand_side_by_side_where_there_is_room() -> None:
    history = History()
    history.take(0.0, ShownFog().devices())
    for width, expected in ((370, 370), (1000, 490)):
        root = ElementTree.fromstring(plots(history, "jetson", 0.0, width))
        assert {each.attrib["width"] for each in root} == {str(expected)}
        assert len(root) == 4


@pytest.mark.parametrize(("covered", "said"), [(40, "5 min"), (600, "15 min"), (3590, "60 min")])
def test_a_plot_spans_what_is_known(covered: int, said: str) -> None:
    history = History()
    for now in range(0, covered, 5):
        history.take(
            float(now), [{"id": "pi", "state": "ready", "telemetry": {"cpu_load_ratio": 1}}]
        )
    assert f"{said} ago" in plots(history, "pi", float(covered), 800)


# --- words and tables -------------------------------------------------------------------------


def test_facts_of_the_fog_show_measured_beside_predicted() -> None:
    states = {"ready": 5, "sleeping": 0, "lost": 1}
    details = {"running": 3, "waiting": 1, "devices": states}
    known = dict(fog_facts(ShownFog().fog_plan(), details))
    assert known["Devices"] == "5 ready, 1 lost"
    assert known["Plan"] == "1, active"
    assert known["Requests"] == "3 running, 1 waiting"
    assert known["First token"] == "– (600 ms predicted)"


def test_facts_of_a_fog_without_a_plan_predict_nothing() -> None:
    fog = ShownFog()
    fog.view = FogView()
    facts = dict(fog_facts(fog.fog_plan(), {}))
    assert facts["Tokens/s"] == facts["First token"] == "–"


def test_a_table_without_rows_is_its_caption() -> None:
    assert devices_table([], ShownFog().fog_plan()) == "<p>0 devices</p>"


def test_facts_of_a_device_name_the_rules_of_its_owner() -> None:
    rules = {
        "share": 0.5,
        "quiet_hours": "22:00-06:00",
        "phases": ["decode"],
        "text": False,
        "layers": [4, 8],
    }
    assert owner_text(rules) == (
        "50 % of the device, decode, quiet 22:00-06:00, no text, layers 4–7 only"
    )
    assert device_facts(None) == (("State", "unknown here"),)


def test_the_newest_decision_stands_first() -> None:
    fog = ShownFog()
    fog.adopt(plan_of(2, replica("r-1", Role.BOTH, DEVICES[:2]), trigger="pi4 <b>joined</b>"))
    found = decisions_table(fog.plan_history())
    assert found.index("pi4 &lt;b&gt;joined&lt;/b&gt;") < found.index("first plan")


def test_rates_are_shown_as_predicted_and_as_measured() -> None:
    plan = ShownFog().fog_plan()
    plan["measured"]["ttft_seconds"] = 0.75
    plan["errors"]["ttft_seconds"] = 0.25
    row = "<td>Time to the first token</td><td>600 ms</td><td>750 ms</td><td>+25 %</td>"
    assert row in rates_table(plan)


def test_stages_that_are_farthest_off_stand_first() -> None:
    plan = ShownFog().fog_plan()

    def times(error: float) -> dict[str, Any]:
        return {"predicted_seconds": 0.1, "measured_seconds": 0.1 * (1 + error), "error": error}

    stages = [stage for each in plan["replicas"] for stage in each["stages"]]
    for stage, error in zip(stages, (0.1, -0.5, 0.2, 0.0, 0.3), strict=True):
        stage["measured"] = {"decode": times(error), "prefill": None}
    found = stages_table(plan)
    order = sorted(DEVICES[:5], key=lambda device: found.index(f"<td>{device}</td>"))
    assert order == ["laptop", "pi5-hall", "jetson", "mini-pc", "pi5-kitchen"]


@pytest.mark.parametrize(
    ("value", "said"), [(None, "–"), (0.0, "0"), (0.1234, "0.123"), (99.6, "100"), (1234.5, "1234")]
)
def test_a_figure_has_three_digits(value: float | None, said: str) -> None:
    assert figure(value) == said


@pytest.mark.parametrize(
    ("value", "said"), [(None, "–"), (0.0123, "12.3 ms"), (0.9999, "1 s"), (7.5, "7.5 s")]
)
def test_a_duration_has_the_unit_in_which_it_is_short(value: float | None, said: str) -> None:
    assert seconds(value) == said


def test_a_coordinate_is_short() -> None:
    assert svg.number(3.0) == "3"
    assert svg.number(math.pi) == "3.1"


async def test_samples_are_taken_until_the_gateway_stops() -> None:
    history, fog, taken = History(), ShownFog(), asyncio.Event()
    times = itertools.count()

    def clock() -> float:
        now = next(times)
        if now == 3:
            taken.set()
        return float(now)

    task = asyncio.create_task(record(history, fog.devices, clock, seconds=0.0))
    await taken.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    points = history.points("jetson", "cpu_load_ratio")
    assert [point.at for point in points[:3]] == [0.0, 1.0, 2.0]

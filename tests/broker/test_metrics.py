import http.client

import pytest

from broker.exposition import Exposition, MetricsListener, begin_to_listen
from broker.metrics import BUS, Distribution, Kind, Metric, bus_samples
from broker.traffic import Traffic
from tests.support.metrics import NONE, labels, parsed

LOAD = Metric("load_ratio", Kind.GAUGE, "How busy it is")
ERRORS = Metric("errors_total", Kind.COUNTER, "What went wrong, by `kind`", ("kind",))
WAIT = Metric("wait_seconds", Kind.HISTOGRAM, "How long it took")


def test_buckets_count_what_does_not_exceed_their_bound() -> None:
    waits = Distribution((0.1, 1.0))

    for value in (0.05, 0.1, 0.5, 7.0):
        waits.add(value)

    assert waits.buckets() == [(0.1, 2), (1.0, 3), (float("inf"), 4)]
    assert waits.total == pytest.approx(7.65)


def test_prometheus_reads_every_kind_of_metric() -> None:
    waits = Distribution((0.1, 1.0))
    waits.add(0.5)
    samples = [WAIT.of(waits), ERRORS.of(3, 'a "quoted"\nkind'), LOAD.of(0.25)]

    body, media_type = Exposition((LOAD, ERRORS, WAIT), lambda: samples).text()

    found = parsed(body.decode())
    assert media_type.startswith("text/plain; version=")
    assert found["load_ratio"] == {NONE: 0.25}
    assert found["errors_total"] == {labels(kind='a "quoted"\nkind'): 3}
    assert found["wait_seconds_bucket"][labels(le="0.1")] == 0
    assert found["wait_seconds_bucket"][labels(le="+Inf")] == 1
    assert found["wait_seconds_sum"] == {NONE: 0.5}


def test_who_asks_for_openmetrics_gets_it() -> None:
    exposition = Exposition((ERRORS,), lambda: [ERRORS.of(1, "x")])

    body, media_type = exposition.text("application/openmetrics-text; version=1.0.0")

    assert media_type.startswith("application/openmetrics-text")
    assert body.decode().endswith("# EOF\n")


def test_what_nobody_knows_is_left_out() -> None:
    body, _ = Exposition((LOAD, ERRORS), lambda: [LOAD.of(1)]).text()

    assert set(parsed(body.decode())) == {"load_ratio"}


@pytest.mark.parametrize(
    ("metric", "value", "given"),
    [(ERRORS, 1.0, ()), (LOAD, 1.0, ("x",)), (WAIT, 1.0, ()), (LOAD, Distribution((1,)), ())],
)
def test_a_sample_has_the_labels_and_the_type_of_its_metric(
    metric: Metric, value: float | Distribution, given: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=metric.name):
        metric.of(value, *given)


def test_a_listener_tells_what_is_true_when_it_is_asked() -> None:
    traffic = Traffic()
    listener = MetricsListener("127.0.0.1", 0, Exposition(BUS, lambda: bus_samples(traffic)))
    try:
        traffic.sent(b"12345")
        connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=10)
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        found = parsed(answer.read().decode())
        connection.close()
    finally:
        listener.stop()

    assert answer.status == 200
    assert found["e2llm_bus_messages_total"][labels(direction="sent")] == 1
    assert found["e2llm_bus_payload_bytes_total"][labels(direction="sent")] == 5
    assert found["e2llm_bus_messages_total"][labels(direction="received")] == 0


def test_traffic_of_two_connections_adds_up() -> None:
    assert Traffic(1, 10, 2, 20) + Traffic(3, 30, 4, 40) == Traffic(4, 40, 6, 60)


def test_a_process_goes_on_when_nobody_can_have_its_metrics(
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken = MetricsListener("127.0.0.1", 0, Exposition(BUS, list))
    try:
        found = begin_to_listen(f"127.0.0.1:{taken.port}", BUS, list)
    finally:
        taken.stop()

    assert found is None
    assert "metrics are not told" in caplog.text


def test_without_an_address_nothing_listens() -> None:
    assert begin_to_listen(None, BUS, list) is None

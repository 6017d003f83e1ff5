"""A table of metrics as text for Prometheus, and a small listener; prometheus-client is here."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isinf
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as Family,
)
from prometheus_client.registry import Collector, CollectorRegistry

from broker.address import listening_address
from broker.metrics import Distribution, Kind, Metric, Sample

logger = logging.getLogger(__name__)


class Exposition(Collector):
    """Reads samples whenever somebody asks, so that nothing is counted for nobody.

    Args:
        table: Every metric of the process, in the order of the text.
        read: What they say now; from any thread.
    """

    def __init__(self, table: Sequence[Metric], read: Callable[[], Iterable[Sample]]) -> None:
        self._table = table
        self._read = read
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def describe(self) -> list[Family]:
        """Return nothing: what there is need not be read to register this."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yield a family for each metric of which something is known."""
        found: dict[Metric, list[Sample]] = defaultdict(list)
        for sample in self._read():
            found[sample.metric].append(sample)
        for metric in self._table:
            if metric in found:
                yield _family(metric, found[metric])

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """Return the body and media type for a header ``Accept``: OpenMetrics, or plain text."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type


class MetricsListener:
    """Answers ``GET /metrics`` in a thread of its own.

    Raises:
        OSError: The address cannot be used.
    """

    def __init__(self, host: str, port: int, exposition: Exposition) -> None:
        self._server: WSGIServer
        self._server, self._thread = start_http_server(port, host, exposition.registry)

    @property
    def port(self) -> int:
        """Where it listens: what the system chose, for port 0."""
        return self._server.server_port

    def stop(self) -> None:
        """Stop to listen."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def begin_to_listen(
    address: str | None, table: Sequence[Metric], read: Callable[[], Iterable[Sample]]
) -> MetricsListener | None:
    """Begin to tell metrics at ``host:port``; None: nobody wants them, or nobody can have them."""
    if address is None:
        return None
    try:
        listener = MetricsListener(*listening_address(address, "metrics"), Exposition(table, read))
    except OSError as error:
        # The process is worth more than what is told of it.
        logger.error("cannot listen on %s: %s; metrics are not told", address, error)
        return None
    logger.info("metrics at port %d", listener.port)
    return listener


def _bound(value: float) -> str:
    return "+Inf" if isinf(value) else str(value)


def _family(metric: Metric, samples: Iterable[Sample]) -> Family:
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.text, labels=metric.labels)
        for sample in samples:
            assert isinstance(sample.value, Distribution)
            buckets = [(_bound(le), float(num)) for le, num in sample.value.buckets()]
            histogram.add_metric(sample.labels, buckets, sample.value.total)
        return histogram
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.text, labels=metric.labels)
    for sample in samples:
        assert not isinstance(sample.value, Distribution)
        family.add_metric(sample.labels, sample.value)
    return family

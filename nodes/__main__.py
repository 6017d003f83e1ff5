"""``python -m nodes``: one device, until it is told to stop."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.address import listening_address
from broker.conditions import ConditionsFile
from broker.heartbeat import Heartbeat
from broker.logs import LogFormat, configure_log
from broker.mqtt import MqttTransport
from broker.settings import SettingsError, process_settings
from broker.transport import Inbox, Publication, Transport
from nodes.connections import Connections, Filters
from nodes.emulation import EmulatedLink, LinkSchedule, usual
from nodes.hardware import cpu_quota_cores, share_slowdown, software_version
from nodes.presence import Presence
from nodes.settings import PREFIX, NodeSettings

if TYPE_CHECKING:
    from broker.exposition import MetricsListener
    from nodes.reports import Reports
    from nodes.shelf import Shelf
    from nodes.supply import Supply
    from nodes.tensor_server import TensorServer

_GOODBYE_SECONDS: Final = 0.5
"""A computation may take longer than a stopping node has; then goodbye is said beside it."""


def main() -> int:
    """Run the node; return the exit status."""
    settings = process_settings(NodeSettings, PREFIX, "python -m nodes", sys.argv[1:])
    try:
        _configure_log(settings.log, settings.log_format)
    except SettingsError as error:
        print(f"python -m nodes: {error}", file=sys.stderr)  # noqa: T201
        return 2
    # Importing torch takes seconds, part of them in the dynamic loader, where no Python runs
    # that could answer a signal. Nothing has been said by then that must be taken back, so
    # until torch is there a signal just ends the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    presence = Presence(int(time.time() * 1000))
    connections = _connections(settings)
    # The broker answers meanwhile.
    connections.open(presence.session)
    # Weights in huge pages: looking up small ones takes up to a tenth of a step.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from nodes.service import RefusedError

    stop = threading.Event()
    _stop_on_signals(stop, connections)
    try:
        _run(settings, connections, presence, stop)
    except RefusedError as error:
        logging.getLogger("nodes").error("%s; give the device its own credential", error)
        return 1
    finally:
        connections.close()
    return 0


def _run(
    settings: NodeSettings, connections: Connections, presence: Presence, stop: threading.Event
) -> None:
    import torch

    from nodes.calibrator import Calibrator
    from nodes.context import StageSettings
    from nodes.loader import Loader
    from nodes.profiler import Profiler
    from nodes.service import NodeService

    torch.set_num_threads(settings.threads)
    torch.set_grad_enabled(False)
    cache = settings.cache_folder(_user_cache())
    owner = settings.owner(time.localtime().tm_gmtoff)
    slowdown = settings.slowdown
    # An emulated device has no more cores than it computes with.
    cores = settings.threads if slowdown > 1 else cpu_quota_cores() or os.cpu_count() or 1
    if owner.share < 1:
        # Kept as emulation is: a computation is followed by a rest in proportion.
        slowdown *= share_slowdown(owner.share, settings.threads, cores)
    supply = _supply(settings, cache)
    server, shelf = _serve(settings, supply)
    loader = Loader(cache, settings.threads, supply=supply, shelf=shelf)
    loader.start()
    profiler = Profiler(
        Calibrator(cache, settings.threads),
        settings.offer,
        slowdown=slowdown,
        threads=settings.threads,
        watts=(settings.idle_watts, settings.busy_watts),
        owner=owner,
    )
    service = NodeService(
        connections,
        presence,
        profiler,
        loader,
        slowdown=slowdown,
        is_emulated=settings.slowdown > 1,
        hardship=_hardship(settings),
        telemetry_seconds=settings.telemetry_seconds,
        stages=StageSettings(most_proposed=settings.speculation),
        heartbeat=Heartbeat(settings.state),
        stop=stop,
    )
    listener = _tell_metrics(settings, service.reports)
    try:
        service.run()
    finally:
        loader.stop()
        if listener is not None:
            listener.stop()
        if server is not None:
            server.stop()


def _supply(settings: NodeSettings, cache: Path) -> Supply:
    """Return where weights come from, beside folders."""
    from nodes.neighbours import Neighbours
    from nodes.supply import HubAccess, Supply
    from nodes.tensor_cache import TensorCache

    tensors = TensorCache(cache / "weights")
    cache.mkdir(parents=True, exist_ok=True)
    available = shutil.disk_usage(cache).free + tensors.used_bytes
    tensors.limit_bytes = settings.cache_limit_bytes(available)
    neighbours = Neighbours(settings.id)
    return Supply(tensors, neighbours, hub=HubAccess.from_environ())


def _serve(settings: NodeSettings, supply: Supply) -> tuple[TensorServer | None, Shelf | None]:
    """Begin to hand weights on, where the settings say so."""
    if settings.serve is None:
        return None, None
    from nodes.shelf import Shelf
    from nodes.tensor_server import TensorServer, reachable_url

    host, port = listening_address(settings.serve, "serve")
    try:
        server = TensorServer(host, port)
    except OSError as error:
        # Others have the weights, too; this device can still compute.
        logging.getLogger("nodes").error(
            "cannot listen on %s: %s; weights are not handed on", settings.serve, error
        )
        return None, None
    broker = settings.address
    url = settings.serve_url or reachable_url(host, server.port, (broker.host, broker.port))
    shelf = Shelf(url, supply.cache)
    server.start(shelf)
    return server, shelf


def _tell_metrics(settings: NodeSettings, reports: Reports) -> MetricsListener | None:
    """Begin to tell metrics, where the settings say so."""
    if settings.metrics is None:
        # A small device that nobody asks does without prometheus-client.
        return None
    from broker.exposition import begin_to_listen
    from nodes.metrics import TABLE

    return begin_to_listen(settings.metrics, TABLE, reports.samples)


def _hardship(settings: NodeSettings) -> Callable[[], float]:
    """Return what says how many times slower than usual the device is now."""
    if settings.conditions is None:
        return usual
    file = ConditionsFile(settings.conditions)
    return lambda: file.of(settings.id).slowdown


def _connections(settings: NodeSettings) -> Connections:
    address = settings.address

    def dial(client: str, filters: Filters, will: Publication | None, inbox: Inbox) -> Transport:
        transport = MqttTransport(address, client, will=will, inbox=inbox)
        transport.subscribe(filters)
        transport.connect()
        return transport

    link = None
    if settings.link_delay_seconds or settings.link_bytes_per_second is not None:
        link = EmulatedLink(
            LinkSchedule(settings.link_delay_seconds, settings.link_bytes_per_second)
        )
    return Connections(settings.id, settings.site, dial, software=software_version(), link=link)


def _stop_on_signals(stop: threading.Event, connections: Connections) -> None:
    # The only queue whose put may interrupt anything in the same thread; setting the event
    # in the handler could wait for a lock that the interrupted thread holds.
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def leave() -> None:
        signals.get()
        stop.set()
        # A wait that a signal interrupts at its very end goes on for ever (CPython 3.11,
        # SimpleQueue.get), so the loop is woken from here.
        connections.wake()
        time.sleep(_GOODBYE_SECONDS)
        connections.close()

    threading.Thread(target=leave, name="goodbye", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: signals.put(signum))


def _configure_log(level: str, form: LogFormat) -> None:
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise SettingsError(f"E2LLM_LOG={level!r} is not debug, info, warning or error")
    configure_log(number, form)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking torch apart costs half a second, and a thread may still be computing in it.
    os._exit(status)

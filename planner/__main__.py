"""``python -m planner``: the planner of one fog, configured by ``E2LLM_PLANNER_*``."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from typing import Final

from broker.address import BrokerAddress
from broker.exposition import begin_to_listen
from broker.logs import configure_log
from broker.mqtt import MqttTransport
from broker.settings import process_settings
from planner.live.metrics import TABLE
from planner.live.service import PlannerService, RefusedError, farewell
from planner.live.settings import PlannerSettings
from planner.live.store import Store

PROGRAM: Final = "python -m planner"


def main() -> int:
    """Run until SIGINT or SIGTERM; 2 for a wrong setting, 1 for a refused credential."""
    settings = process_settings(PlannerSettings, "E2LLM_PLANNER_", PROGRAM, sys.argv[1:])
    try:
        address = BrokerAddress.parse(settings.broker)
        level = logging.getLevelNamesMapping()[settings.log.upper()]
    except ValueError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)  # noqa: T201  # before logging is set up
        return 2
    except KeyError:
        print(f"{PROGRAM}: E2LLM_LOG={settings.log!r} is no log level", file=sys.stderr)  # noqa: T201
        return 2
    configure_log(level, settings.log_format)

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    # Each start has a later session, and an id of its own: with one id for all, a second
    # planner and the first would take each other's connection for ever.
    session = time.time_ns() // 1_000_000
    transport = MqttTransport(address, f"planner-{session}", will=farewell(settings, session))
    store = Store.from_url(
        settings.redis,
        settings.site,
        session,
        telemetry_seconds=settings.telemetry_seconds,
        lease_seconds=settings.lease_seconds,
    )
    service = PlannerService(transport, store, settings, session)
    listener = begin_to_listen(settings.metrics, TABLE, lambda: service.samples)
    transport.connect()
    try:
        service.run(stop)
    except RefusedError as error:
        logging.getLogger("planner").error("%s", error)
        return 1
    finally:
        if listener is not None:
            listener.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())

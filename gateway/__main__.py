"""Run a gateway: ``python -m gateway``. Settings: `gateway.settings`, from the environment.

HTTP is served first, so that ``/readyz`` tells how far the rest is. The exit status is 2
when settings, model or credentials are refused, so that a new start would not help.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import uvloop

from broker.control import DeviceState, GatewayStatus
from broker.interfaces import addresses_of, interfaces_here, judge
from broker.logs import configure_log
from broker.mqtt import MqttTransport
from broker.settings import process_settings
from gateway.access.shared import RedisAccess
from gateway.access.store import KeyFile, KeyFileError, KeyStore
from gateway.app import create_app
from gateway.claims import RedisClaims
from gateway.dashboard.history import History, record
from gateway.engine import FogEngine
from gateway.home.assistant import home_assistant
from gateway.inference import Inference
from gateway.journal import open_journal
from gateway.keeper import Keeper
from gateway.ledger import DispatchSettings
from gateway.meter import Meter
from gateway.model import ModelRefusedError, ServedModel
from gateway.models import Model, Models
from gateway.preparation import prepare_model
from gateway.prompts import Prompts
from gateway.server import HttpServer, listen
from gateway.settings import PREFIX, Settings
from gateway.status import new_session, status_publication
from gateway.tracing.tracer import open_tracer
from gateway.weights import UrlSigner, load_key

logger = logging.getLogger("gateway")

REFUSED: Final = 2


class RefusedError(Exception):
    """Port, state folder or credentials cannot be used; the message names the remedy."""


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    settings = process_settings(Settings, PREFIX, "python -m gateway", sys.argv[1:])
    configure_log(settings.log.upper(), settings.log_format)
    try:
        # libuv's loop: a gateway that streams spends much of its time in the loop itself.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(Gateway(settings).run())
    except RefusedError as error:
        logger.error("%s", error)
        return REFUSED


class Gateway:
    """The parts of a gateway process, wired."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._software = _software_version()
        self._models = Models(settings)
        try:
            key = load_key(settings.state)
        except OSError as error:
            raise RefusedError(
                f"the folder E2LLM_GATEWAY_STATE={settings.state} cannot be used: {error}"
            ) from error
        self._signer = UrlSigner(key, settings.base_url)
        self._shared = RedisAccess(settings.redis, settings.site) if settings.redis else None
        self._meter = Meter(self._shared)
        self._tracer = open_tracer(os.environ, settings.gateway_id, self._software)
        try:
            self._keys = KeyStore(
                KeyFile(settings.state), self._shared, admin_key=settings.admin_key
            )
        except KeyFileError as error:
            raise RefusedError(f"{error}; mend it, or restore a copy of it") from error

    async def run(self) -> int:
        """Serve until told to stop; return the exit status.

        Raises:
            RefusedError: The port cannot be used, or strangers could use the gateway.
        """
        settings = self._settings
        try:
            await self._keys.start()
        except KeyFileError as error:
            raise RefusedError(str(error)) from error
        if self._keys.ring.is_open and not settings.may_be_open:
            raise RefusedError(open_to_strangers(settings))
        try:
            listener = listen(settings.host, settings.port)
        except OSError as error:
            raise RefusedError(
                f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; "
                "set E2LLM_GATEWAY_PORT to a free port"
            ) from error
        stopping = asyncio.Event()
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        transport, engine = self._connect_later(refused)
        prompt_transport, prompts = self._prompts_later(engine)
        home = home_assistant(settings, engine, self._software)
        history = History()
        app = create_app(
            engine,
            self._models,
            settings,
            self._signer,
            stopping,
            prompts,
            keys=self._keys,
            meter=self._meter,
            tracer=self._tracer,
            history=history,
        )
        server = HttpServer(app, debug=settings.log.upper() == "DEBUG")
        serving = asyncio.create_task(server.serve([listener]))
        logger.info("listening on %s", settings.base_url)
        advertising = asyncio.create_task(advertise(settings))
        recording = asyncio.create_task(record(history, engine.devices, time.time))

        async def work() -> None:
            keeper = self._keeper(engine)
            keeper.expect()
            await engine.start()
            transport.connect()
            if settings.prompts_per_client:
                prompts.start()
                prompt_transport.connect()
            if home is not None:
                home[1].start()
                home[0].connect()
            await keeper.run()

        working = asyncio.create_task(work())
        told = asyncio.create_task(_told_to_stop())
        try:
            done, _ = await asyncio.wait(
                {serving, working, told, refused}, return_when=asyncio.FIRST_COMPLETED
            )
            for future in done - {told, serving}:
                future.result()
        except (ModelRefusedError, RefusedError) as error:
            # Before the rest is stopped: should that take long, the reason is known.
            logger.error("%s", error)
            return REFUSED
        finally:
            stopping.set()
            server.should_exit = True
            others = (working, told, advertising, recording)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            # Before the engine, whose end would look like a failure of the fog to them.
            await prompts.stop()
            if home is not None:
                await home[1].stop()
            await asyncio.gather(serving, engine.stop())
            await self._keys.stop()
            if self._tracer is not None:
                await asyncio.to_thread(self._tracer.stop)
            if self._shared is not None:
                await self._shared.close()
        return 0

    def _connect_later(self, refused: asyncio.Future[None]) -> tuple[MqttTransport, FogEngine]:
        settings, session = self._settings, new_session()
        lost = GatewayStatus(state=DeviceState.LOST, session=session, software=self._software)
        transport = MqttTransport(
            settings.address,
            settings.gateway_id,
            will=status_publication(settings.site, settings.gateway_id, lost),
        )

        def refuse(reason: str) -> None:
            if not refused.done():
                refused.set_exception(RefusedError(f"{settings.address}: {reason}"))

        engine = FogEngine(
            transport,
            settings.site,
            settings.gateway_id,
            DispatchSettings(
                policy=settings.policy,
                prefix_cache=settings.prefix_cache,
                queue_limit=settings.queue_limit,
            ),
            journal=open_journal(settings.redis, settings.site, settings.state),
            addresses=[settings.base_url],
            software=self._software,
            session=session,
            on_refused=refuse,
            tracer=self._tracer,
        )
        return transport, engine

    def _prompts_later(self, engine: FogEngine) -> tuple[MqttTransport, Prompts]:
        settings = self._settings
        transport = MqttTransport(settings.address, f"{settings.gateway_id}~prompts")
        prompts = Prompts(
            transport,
            settings.site,
            Inference(engine, self._models, settings, self._meter, self._tracer),
            max_body_bytes=settings.max_body_bytes,
            per_client=settings.prompts_per_client,
            claims=self._claims(),
        )
        return transport, prompts

    def _claims(self) -> RedisClaims | None:
        settings = self._settings
        if settings.redis is None:
            return None
        owner = f"{settings.gateway_id}:{new_session()}"
        return RedisClaims(settings.redis, settings.site, owner)

    def _keeper(self, engine: FogEngine) -> Keeper:
        async def prepare(model: Model) -> ServedModel:
            return await prepare_model(model.settings, model.slot, self._software)

        seconds = self._settings.url_seconds
        return Keeper(self._models, engine, self._signer, prepare, seconds)


async def advertise(settings: Settings) -> None:
    """Tell the local networks of this gateway, where it should, until cancelled."""
    if not settings.advertise:
        return
    try:
        from broker.discovery import Advertisement
    except ModuleNotFoundError:
        logger.error("E2LLM_GATEWAY_ADVERTISE needs: pip install 'e2llm[mdns]'; nobody is told")
        return
    verdicts = judge(interfaces_here())
    for verdict in verdicts:
        logger.info("mDNS: %s", verdict.text)
    advertisement = Advertisement(settings.gateway_id, settings.port, settings.public_url)
    try:
        await asyncio.to_thread(advertisement.start, addresses_of(verdicts))
        await asyncio.Event().wait()
    except OSError as error:
        logger.error("mDNS: %s; nobody is told of this gateway", error)
    finally:
        await asyncio.to_thread(advertisement.stop)


def open_to_strangers(settings: Settings) -> str:
    """Return why a gateway without keys does not start, and each remedy."""
    return (
        f"E2LLM_GATEWAY_HOST={settings.host} can be reached from other machines, and there is no "
        f"API key yet. Make one: e2llm key create NAME --scope admin --state {settings.state} "
        "(or give one in E2LLM_GATEWAY_ADMIN_KEY_FILE); or listen on 127.0.0.1; or set "
        "E2LLM_GATEWAY_ALLOW_OPEN=true where a firewall or proxy keeps strangers out"
    )


async def _told_to_stop() -> None:
    """Return at the first SIGTERM or SIGINT; the second one ends the process at once."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, told.set)
    try:
        await told.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _software_version() -> str:
    with contextlib.suppress(PackageNotFoundError):
        return f"e2llm {version('e2llm')}"
    return "e2llm from source"


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # Threads of a download that was broken off would keep the process for minutes.
    os._exit(status)

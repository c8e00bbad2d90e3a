"""`quire serve` as a process: event loop, signals, exit code.

Invariant: a process whose engine has died or hangs ends with another exit code than 0, whatever its
threads do, and however it ends it leaves no engine's process behind. The first SIGTERM or SIGINT
drains, the second ends the process at once. Standard output carries one line,
`serving MODEL on HOST:PORT`, when the server is ready.
"""

import asyncio
import logging
import os
import signal
import sys
from typing import NoReturn

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.errors import EngineDeadError
from quire.engine.loop import garbage
from quire.engine.model.shape import model_config, resolve_max_model_len
from quire.service.app.event_loop import new_event_loop
from quire.service.app.placement import LinkMaker
from quire.service.app.progress import Progress
from quire.service.app.server import EXIT_DEAD, Server, run
from quire.service.app.watchdog import hold_deadman
from quire.service.models.resolve import resolve
from quire.service.settings import ServiceConfig, Settings
from quire.service.telemetry import logs

log = logging.getLogger("quire.service")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# With many streams the interpreter's default of 5 ms would let the event loop hold up the engine.
_SWITCH_SECONDS = 0.0005


def serve_forever(settings: Settings, make_link: LinkMaker) -> int:
    """Returns the exit code. make_link: where the engine is to run (see placement).

    Raises QuireError for what cannot be started.
    """
    logs.set_up(settings.service.log_format, settings.service.log_level)
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            code = runner.run(_serve(settings, make_link))
    finally:
        logs.flush()
    if code is None:
        # A stop was asked for while the model was loading, which a thread cannot be kept from.
        _leave(128 + signal.SIGTERM)
    return code


async def _serve(settings: Settings, make_link: LinkMaker) -> int | None:
    stop_asked = asyncio.Event()
    _install_signals(stop_asked)
    resolved = resolve(settings.engine)
    engine_config = settings.engine.replace(model=resolved.engine_model)
    shape = model_config(engine_config)
    server = Server(settings, resolved, AsyncEngine(make_link(engine_config)))
    await server.open(resolve_max_model_len(engine_config, shape))
    progress = Progress()
    loading = asyncio.create_task(server.load(shape.vocab_size, progress))
    asked = asyncio.create_task(stop_asked.wait())
    await asyncio.wait({loading, asked}, return_when=asyncio.FIRST_COMPLETED)
    progress.close()
    asked.cancel()
    if not loading.done():
        return None
    try:
        await loading
    except EngineDeadError:
        await server.stop()
        return EXIT_DEAD
    except BaseException:
        await server.stop()
        raise

    garbage.freeze()

    def ready() -> None:
        host = settings.service.host
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        print(f"serving {server.model_name} on {shown}:{server.port}", flush=True)
        if server.metrics_port:
            log.info("metrics on %s:%d", settings.service.metrics_host, server.metrics_port)

    deadman = asyncio.create_task(_deadman(settings.service))
    try:
        code = await run(server, stop_asked, ready)
    finally:
        deadman.cancel()
    if server.engine_abandoned:
        _leave(code or EXIT_DEAD)
    return code


async def _deadman(service: ServiceConfig) -> None:
    """Watch over the event loop itself, where the watchdog may end the process at all."""
    if service.watchdog_seconds and service.watchdog_exit_seconds:
        await hold_deadman(service.watchdog_seconds + service.watchdog_exit_seconds)


def _install_signals(stop_asked: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop_asked.is_set():
            log.warning("second %s: leaving at once", number.name)
            _leave(128 + number)
        stop_asked.set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)


def _leave(code: int) -> NoReturn:
    """End the process without waiting for any thread."""
    logs.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

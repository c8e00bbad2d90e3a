"""`quire serve` as a process: event loop, signals, exit code.

Invariant: a process whose engine has died or hangs ends with another exit code than 0, whatever its
threads do, and however it ends it leaves no engine's process behind. The first SIGTERM or SIGINT
drains, and from then on the process ends within `drain_seconds` and END_SECONDS, whatever its
clients, threads and readers do; the second ends it at once. Standard output carries one line,
`serving MODEL on HOST:PORT`, when the server is ready.
"""

import asyncio
import logging
import os
import sys
from typing import NoReturn

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.errors import EngineDeadError
from quire.engine.loop import garbage
from quire.engine.model.load_config import model_config, resolve_max_model_len
from quire.service import malloc_memory
from quire.service.app.event_loop import new_event_loop
from quire.service.app.openai_frontend import lines_to_paste
from quire.service.app.placement import LinkMaker
from quire.service.app.progress import Progress
from quire.service.app.server import END_SECONDS, Server
from quire.service.app.signals import Signals
from quire.service.app.watchdog import Deadman
from quire.service.models.resolve import resolve
from quire.service.settings import ServiceConfig, Settings
from quire.service.telemetry import logs, standard_streams

log = logging.getLogger("quire.service")

# With many streams the interpreter's default of 5 ms would let the event loop hold up the engine.
_SWITCH_SECONDS = 0.0005
_EXIT_OK, _EXIT_DEAD = 0, 1


def serve_forever(settings: Settings, make_link: LinkMaker) -> int:
    """Returns the exit code, with which the caller must `leave`, since threads may still be
    running. make_link: where the engine runs (see placement). Raises QuireError if the server
    cannot start."""
    service = settings.service
    logs.set_up(service.log_format, service.log_level)
    sys.setswitchinterval(_SWITCH_SECONDS)
    malloc_memory.few_arenas()
    signals = Signals(service.drain_seconds + END_SECONDS)
    runner = asyncio.Runner(loop_factory=new_event_loop)
    try:
        return runner.run(_serve(settings, make_link, signals))
    except BaseException:
        runner.close()
        logs.give_back()
        raise


async def _serve(settings: Settings, make_link: LinkMaker, signals: Signals) -> int:
    stop_asked = signals.stop_asked()
    resolved = resolve(settings.engine)
    engine_config = settings.engine.replace(model=resolved.engine_model)
    shape = model_config(engine_config)
    server = Server(settings, resolved, AsyncEngine(make_link(engine_config)))
    signals.on_hangup = server.read_again
    await server.open(resolve_max_model_len(engine_config, shape))
    await server.open_http()
    progress = Progress(logs.terminal())
    ends = None if shape.embeds_only else shape.eos_token_ids
    loading = asyncio.create_task(server.load(shape.vocab_size, progress, eos_token_ids=ends))
    asked = asyncio.create_task(stop_asked.wait())
    await asyncio.wait({loading, asked}, return_when=asyncio.FIRST_COMPLETED)
    progress.close()
    asked.cancel()
    if not loading.done():  # which a thread cannot be kept from: it ends with the process
        return signals.exit_code()
    try:
        await loading
    except EngineDeadError:
        await server.stop()
        return _EXIT_DEAD
    except BaseException:
        await server.stop()
        raise

    garbage.freeze()
    guarded = asyncio.create_task(_guard(settings.service, signals.deadman))
    try:
        _say_ready(settings.service, server)
        code = await _run(server, stop_asked)
    finally:
        guarded.cancel()
        await asyncio.wait({guarded})  # from here on the loop gives no sign of life
    return code or _EXIT_DEAD if server.engine_abandoned else code


async def _run(server: Server, stop_asked: asyncio.Event) -> int:
    """Serve until asked to stop or the engine dies. Returns the exit code."""
    dead = asyncio.create_task(server.wait_dead())
    asked = asyncio.create_task(stop_asked.wait())
    try:
        await asyncio.wait({dead, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not dead.done():
            draining = asyncio.create_task(server.drain())
            await asyncio.wait({dead, draining}, return_when=asyncio.FIRST_COMPLETED)
        code = _EXIT_DEAD if dead.done() else _EXIT_OK
        await server.stop(leaving=True)
        return code
    finally:
        dead.cancel()
        asked.cancel()


def _say_ready(service: ServiceConfig, server: Server) -> None:
    """Report the address: on standard output the line that scripts wait for, in the log the
    rest."""
    host = service.host
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    standard_streams.say(f"serving {server.model_name} on {shown}:{server.port}")
    if server.http_port:
        log.info("%s", lines_to_paste(service, server.http_port, server.model_name))
    if server.metrics_port:
        log.info("metrics on %s:%d", service.metrics_host, server.metrics_port)
    if server.gateway_port:
        log.info("vLLM's engine service on %s:%d", service.gateway_host, server.gateway_port)
    if server.health_port:
        log.info("health checks on %s:%d", service.health_host, server.health_port)


async def _guard(service: ServiceConfig, deadman: Deadman) -> None:
    """Watch over the event loop itself, where the watchdog may end the process at all."""
    if service.watchdog_seconds and service.watchdog_exit_seconds:
        await deadman.hold(service.watchdog_seconds + service.watchdog_exit_seconds)


def leave(code: int) -> NoReturn:
    """End the process without waiting for any thread or reader."""
    logs.flush()
    os._exit(code)

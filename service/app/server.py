"""The server's life cycle: open the port, load, serve, drain, stop.

Invariant: the port is open and NOT_SERVING before the model is loaded; SERVING only after warm-up.
Shutdown has an order: NOT_SERVING first, then no new calls, then streams get `drain_seconds`, then
the engine stops (which ends remaining calls), then the port closes. A dead engine ends the process
with a non-zero exit code.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Collection, Coroutine, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc
from prometheus_client.registry import Collector

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.errors import ConfigError
from quire.service.admission.admission import Admission
from quire.service.admission.intake import Intake, Places, places_for
from quire.service.admission.rate_limits import ClientLimits
from quire.service.app import ports
from quire.service.app.admission_bounds import limits, policy
from quire.service.app.closing import Closing
from quire.service.app.collectors import collectors
from quire.service.app.gateway_frontend import gateway_listener
from quire.service.app.health import Health
from quire.service.app.listener import Keeper, Listener
from quire.service.app.openai_frontend import Parts, open_frontend
from quire.service.app.reflection import add_reflection
from quire.service.app.watchdog import Verdict, Watchdog
from quire.service.hosts import is_loopback
from quire.service.lifecycle import Lifecycle, Phase
from quire.service.models.resolve import ResolvedModel
from quire.service.openai.http_server import HttpServer
from quire.service.rpc.answer_reading import family_of
from quire.service.rpc.call_admission import AccessControl, Serving
from quire.service.rpc.call_guard import CallGuard
from quire.service.rpc.constraints import Compiler
from quire.service.rpc.pooled_requests import PooledReader
from quire.service.rpc.served_model import ServedModel, ends_of
from quire.service.rpc.servicer import InferenceServicer, handler
from quire.service.rpc.stats import StatsReporter
from quire.service.rpc.validation import Validator
from quire.service.rpc.write_watch import WriteWatch
from quire.service.security.auth import Guard
from quire.service.security.credentials import read_security
from quire.service.security.reload import Watcher
from quire.service.settings import Settings
from quire.service.telemetry import logs
from quire.service.telemetry.counters import Ledger
from quire.service.telemetry.metrics_server import MetricsServer
from quire.service.telemetry.tracing import Tracer, make_tracer
from quire.service.text.text_side import read_text_side
from quire.service.text.workers import PromptWorkers

log = logging.getLogger("quire.service")

ProgressReport = Callable[[str, float], None]

# Everything after the drain takes at most END_SECONDS, in the order of these bounds.
END_SECONDS = 5.0
_ENGINE_STOP = 1.5  # seconds that the engine gets to end its step
_WRITES = 2.5  # seconds to write out the ends of calls
_REST = 0.5  # seconds that metrics and traces get to end


def quire_version() -> str:
    """The installed version."""
    try:
        return version("quire")
    except PackageNotFoundError:
        return "unknown"


class Server:
    """One engine behind gRPC's port, and the other ports beside it."""

    def __init__(
        self,
        settings: Settings,
        resolved: ResolvedModel,
        engine: AsyncEngine,
        tracer: Tracer | None = None,
    ) -> None:
        """engine: not started yet. tracer: default by the settings. Raises ConfigError."""
        self._settings = settings
        self._resolved = resolved
        self._engine = engine
        self._lifecycle = Lifecycle()
        self._health = Health()
        self.ledger = Ledger()
        self._security = read_security(settings.service)
        self._tracer = tracer or make_tracer(settings.service.otlp_endpoint)
        self._workers = PromptWorkers()
        engine.others_work = lambda: self._workers.busy
        self._admission = Admission(policy(settings), engine.running)
        self._access = self._new_access()
        self.servicer = self._servicer = InferenceServicer(
            self._lifecycle,
            self.ledger,
            self._access,
            self._tracer,
            WriteWatch(settings.service.write_stall_seconds),
        )
        self._listeners: list[Listener] = []
        self._awaiting: list[Places] = []  # where requests are read
        self._keeper: Keeper | None = None
        # One each: if the disk of one hangs, changes of the others are still seen.
        self._watchers = [Watcher(files) for files in self._security.watched]
        self._metrics: MetricsServer | None = None
        self._watchdog = Watchdog.of(settings.service, engine.busy_since)
        self._watching: asyncio.Task[None] | None = None
        self._http: HttpServer | None = None
        self.port = self.http_port = self.metrics_port = self.health_port = self.gateway_port = 0

    def _new_access(self) -> AccessControl:
        settings = self._settings
        return AccessControl(
            self._security.authenticator,
            ClientLimits(limits(settings)),
            self._admission,
            settings.service.log_prompts,
        )

    # ------------------------------------------------------------ start

    async def open(self, max_model_len: int) -> None:
        """Open the ports: alive, but not ready. Raises ConfigError if one is in use."""
        service = self._settings.service
        authenticator = self._access.authenticator
        self.max_message = max_message = ports.max_message_bytes(max_model_len)
        self._connections = connections = ports.max_connections(
            ports.raise_descriptors(),
            probes=service.health_port is not None,
            http=bool(service.http_port),
        )
        options = ports.channel_options(max_message, connections, service)
        guards, credentials = self._guards(max_message), self._security.credentials()

        def make(port: int) -> tuple[grpc.aio.Server, int]:
            server = grpc.aio.server(options=options, interceptors=guards)
            server.add_generic_rpc_handlers((handler(self._servicer),))
            self._health.add_to(server)
            if service.reflection:
                add_reflection(server, with_health=self._health.available)
            return server, ports.bind(server, service.host, port, credentials)

        self._listeners = [Listener(service.host, service.port, make)]
        self.port = self._listeners[0].port
        self._open_metrics()
        self._open_health()
        self._open_gateway(lambda: grpc.aio.server(options=options, interceptors=guards))
        for listener in self._listeners:
            await listener.start()
        self._keeper = Keeper(self._listeners)
        for watcher in self._watchers:
            watcher.start()
        if authenticator.required and credentials is None and not is_loopback(service.host):
            log.warning(
                "API keys come over %s without TLS: anyone on the network path can read them",
                service.host,
            )
        if not (authenticator.required or self._security.mutual or is_loopback(service.host)):
            log.warning(
                "anyone who can reach %s may call: no api_keys, no tls_client_ca", service.host
            )

    def _guards(self, max_message: int) -> list[grpc.aio.ServerInterceptor]:
        """Interceptors that a call passes before its request is read."""
        authenticator = self._access.authenticator
        self._call_guard = call_guard = CallGuard(authenticator, self.ledger)
        self._places = Places(places_for(max_message))
        self._awaiting.append(self._places)
        intake = Intake(self._places, call_guard.check, call_guard.on_refused, max_message)
        return [Guard(authenticator), intake] if authenticator.required else [intake]

    def _open_gateway(self, new_server: Callable[[], grpc.aio.Server]) -> None:
        service, directory = self._settings.service, self._resolved.tokenizer_directory
        if service.gateway_port is not None:
            parts, health = self._parts(), self._health
            port = gateway_listener(service, parts, self.ledger, health, directory, new_server)
            self._listeners.append(port)
            self.gateway_port = port.port

    def _open_health(self) -> None:
        """Open a port for probes without TLS; it only answers health checks."""
        service = self._settings.service
        if service.health_port is None:
            return
        if not self._health.available:
            raise ConfigError("health_port: needs the package grpcio-health-checking")
        options = ports.channel_options(ports.PROBE_BYTES, ports.PROBES, service)
        places, call_guard = Places(places_for(ports.PROBE_BYTES)), self._call_guard
        self._awaiting.append(places)
        intake = Intake(places, call_guard.check, call_guard.on_refused, ports.PROBE_BYTES)

        def make(port: int) -> tuple[grpc.aio.Server, int]:
            server = grpc.aio.server(options=options, interceptors=[intake])
            self._health.add_to(server)
            return server, ports.bind(server, service.health_host, port, None, "health_")

        self._listeners.append(Listener(service.health_host, service.health_port, make))
        self.health_port = self._listeners[-1].port

    async def load(
        self,
        vocab_size: int,
        progress: ProgressReport | None = None,
        *,
        eos_token_ids: Collection[int] | None = None,
    ) -> None:
        """Load the tokenizer and the template, then the model, then serve. Raises QuireError.

        In this order: errors in small files are reported before weights are read for minutes.
        eos_token_ids: the model's, where its constraints' compiler is to be made beside the engine,
        which takes a second or two of a large vocabulary.
        """
        tokenizer, chat = await asyncio.to_thread(
            read_text_side, self._resolved.tokenizer_directory, vocab_size
        )
        compiler = None
        if eos_token_ids is not None:
            compiler = Compiler(tokenizer, vocab_size, ends_of(tokenizer, eos_token_ids))
            compiler.begin()
        await self._engine.start(progress)
        info = self._engine.info
        family = family_of(self._settings.service.output_parser, chat)
        model = ServedModel(self.model_name, info, tokenizer, chat, family)
        stats = StatsReporter(self._engine, model, self.ledger, quire_version())
        validator = Validator(model, self._workers, compiler)
        if not info.embeds_only:  # now: it holds the interpreter, and nobody is being served yet
            reading = asyncio.to_thread(validator.constraints.vocabulary)
            self._engine.set_vocabulary(await self._engine.unless_dead(reading))
        self._servicer.serving = Serving(
            self._engine,
            model,
            validator,
            stats,
            PooledReader(model, self._workers),
            self._settings.service.message_interval_seconds,
        )
        self._lifecycle.advance(Phase.READY)
        self._health.set_ready(True)
        if self._watchdog is not None:
            self._watching = asyncio.create_task(self._watchdog.watch(self._on_watchdog))

    async def _on_watchdog(self, verdict: Verdict) -> None:
        """A step takes too long, has ended after all, or is given up."""
        hung = verdict is not Verdict.RECOVERED
        if verdict is Verdict.HUNG:
            await self._log_stack()
        elif verdict is Verdict.RECOVERED:
            log.warning("the step that hung has ended")
        else:
            log.critical("a step hangs: the engine is given up (%s)", self._engine.give_up())
        self._health.set_alive(not hung)
        self._health.set_ready(not hung and self._lifecycle.phase is Phase.READY)

    async def _log_stack(self) -> None:
        """Log the engine's stack. An engine process writes its own to the same stream, in pieces
        that never split a log line."""
        log.critical("a step hangs; the engine stands here:")
        await asyncio.to_thread(logs.flush)
        if stack := self._engine.stack():
            log.critical("the engine's thread:\n%s", stack)

    @property
    def engine_abandoned(self) -> bool:
        """Whether the engine's step may never end, so that nothing may wait for it."""
        return self._engine.abandoned

    @property
    def model_name(self) -> str:
        """The name under which the model is served."""
        return self._settings.service.served_model_name or self._resolved.name

    def _open_metrics(self) -> None:
        service = self._settings.service
        if service.metrics_port is None:
            return
        material, beyond = self._security.tls, not is_loopback(service.metrics_host)

        def context() -> ssl.SSLContext | None:
            return material.value.context if material is not None and beyond else None

        try:
            self._metrics = MetricsServer(
                service.metrics_host, service.metrics_port, self._collectors(), context
            )
        except OSError as error:
            raise ConfigError(
                f"cannot serve metrics on {service.metrics_host}:{service.metrics_port}: "
                f"{error.strerror or error}; {ports.elsewhere(error, 'metrics_')}"
            ) from error
        self.metrics_port = self._metrics.port

    def _collectors(self) -> list[Collector]:
        material = self._security.tls
        return collectors(
            self._engine,
            self.ledger,
            self._admission,
            lambda: self._servicer.serving,
            self._step_hung,
            lambda: None if material is None else material.value.expires_at,
            quire_version(),
        )

    def _step_hung(self) -> bool:
        return self._watchdog is not None and self._watchdog.hung

    async def open_http(self, sockets: "Sequence[socket.socket] | None" = None) -> None:
        """Open the OpenAI API too; after `open`. sockets: already listening; default: by the
        options, where a port that is in use is only logged."""
        if sockets is None and not self._settings.service.http_port:
            return
        self._http = await open_frontend(self._settings.service, self._parts(), sockets)
        self.http_port = 0 if self._http is None else self._http.port

    def _parts(self) -> Parts:
        return Parts(
            self._servicer,
            self._access,
            self._lifecycle,
            self._call_guard,
            self._places,
            self._workers,
            self._security,
            self._collectors(),
            self._step_hung,
            quire_version(),
            self.model_name,
            self.max_message,
            self._connections,
        )

    def read_again(self) -> None:
        """Check the watched files now, without waiting for the next poll."""
        for watcher in self._watchers:
            watcher.look_now()

    # ------------------------------------------------------------ end

    async def wait_dead(self) -> None:
        """Returns when the engine has died and probes report it."""
        error_id = await self._engine.wait_dead()
        self._lifecycle.error_id = error_id
        self._lifecycle.advance(Phase.DEAD)
        log.critical("the engine has died (%s): shutting down", error_id)
        self._health.set_ready(False)

    async def drain(self) -> None:
        """Refuse new calls and let open ones end, for at most `drain_seconds`."""
        self._lifecycle.advance(Phase.DRAINING)
        self._health.set_ready(False)
        seconds = self._settings.service.drain_seconds
        log.info("draining", extra={"fields": {"open": self.ledger.open, "seconds": seconds}})
        try:
            async with asyncio.timeout(seconds):
                await self._servicer.wait_idle()
        except TimeoutError:
            log.warning("drain time is over", extra={"fields": {"open": self.ledger.open}})

    async def stop(self, *, leaving: bool = False) -> None:
        """Stop the engine, which ends open calls, then close the ports: within END_SECONDS.

        leaving: the process exits next, and its connections with it: a client that has not read
        its end sees UNAVAILABLE. Otherwise such calls are cancelled here.
        """
        if self._watching is not None:
            self._watching.cancel()
        for watcher in self._watchers:
            watcher.stop()
        self._workers.close()
        try:
            async with asyncio.timeout(_ENGINE_STOP):
                await self._engine.stop()
        except TimeoutError:
            log.error("the engine did not end its step in %g s", _ENGINE_STOP)
            self._engine.give_up()
        self._health.close()
        for places in self._awaiting:
            places.close()
        rest = asyncio.gather(*self._rest(), return_exceptions=True)
        if self._keeper is not None:
            self._keeper.stop()
        closing = Closing(self._listeners, self._http, self.ledger.rpcs.total, _WRITES)
        await closing.run(leaving=leaving)
        await asyncio.wait({rest}, timeout=_REST)

    def _rest(self) -> "list[Coroutine[Any, Any, None]]":
        """End metrics and traces; this is awaited only briefly."""
        stops = [self._tracer.close]
        if self._metrics is not None:
            stops.append(self._metrics.stop)
        return [asyncio.to_thread(stop) for stop in stops]

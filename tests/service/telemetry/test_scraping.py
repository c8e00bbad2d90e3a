"""The metrics' server: silent connections, TLS that changes, and a queue that changes."""

import asyncio
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.harness import run
from support.patience import PATIENCE

from quire.service.admission.admission import Admission, Policy
from quire.service.telemetry import metrics_server
from quire.service.telemetry.counters import Ledger
from quire.service.telemetry.loop_snapshot import LoopSnapshot
from quire.service.telemetry.metrics_server import MAX_CONNECTIONS, MetricsServer
from quire.service.telemetry.protection_metrics import ProtectionCollector

Started = Callable[..., MetricsServer]


@pytest.fixture
def start() -> Iterator[Started]:
    servers: list[MetricsServer] = []

    def started(**options: Any) -> MetricsServer:
        collector = ProtectionCollector(Admission(Policy(slots=1)), Ledger(), lambda: None)
        servers.append(MetricsServer("127.0.0.1", 0, [collector], **options))
        return servers[-1]

    yield started
    for server in servers:
        server.stop()


def page(server: MetricsServer) -> str:
    url = f"http://127.0.0.1:{server.port}/metrics"
    text: str = urllib.request.urlopen(url, timeout=PATIENCE).read().decode()
    return text


def silent(server: MetricsServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)


def cut_off(connection: socket.socket) -> bool:
    """By the server: at its end, or, where it was not accepted yet, with a reset."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_silent_connection_holds_up_no_other(start: Started) -> None:
    server = start()
    with silent(server), silent(server):
        assert "quire_queue_limit" in page(server)


def test_a_silent_connection_does_not_hold_up_the_handshakes_of_others(start: Started) -> None:
    asked = threading.Semaphore(0)

    def context() -> ssl.SSLContext:
        asked.release()
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # without a certificate: nobody gets in

    server = start(context=context)
    with silent(server), silent(server), silent(server):
        for _ in range(3):  # each has a worker of its own, which waits for its client
            assert asked.acquire(timeout=PATIENCE)
        assert server._server.service_actions() is None


def test_stop_waits_for_no_connection(start: Started) -> None:
    server = start(context=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    with silent(server) as connection:
        stopping = threading.Thread(target=server.stop, daemon=True)
        stopping.start()
        stopping.join(PATIENCE)
        assert not stopping.is_alive()
        assert cut_off(connection)
    assert not server._thread.is_alive()


def test_connections_have_a_most_and_an_end(
    start: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "HANDSHAKE_SECONDS", 3600.0)
    server = start(life_seconds=0.0)  # at the next look, each is too old
    held = [silent(server) for _ in range(MAX_CONNECTIONS)]
    for connection in held:
        assert cut_off(connection)
        connection.close()

    crowded = start(life_seconds=1e9)
    held = [silent(crowded) for _ in range(MAX_CONNECTIONS)]
    with silent(crowded) as one_more:
        assert cut_off(one_more)
    for connection in held:
        connection.close()


def test_a_connection_over_tls_has_an_end_too(
    start: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "HANDSHAKE_SECONDS", 3600.0)
    begun = threading.Event()

    class Context(ssl.SSLContext):
        def wrap_socket(self, *given: Any, **more: Any) -> ssl.SSLSocket:
            secure = super().wrap_socket(*given, **{**more, "do_handshake_on_connect": False})
            begun.set()
            return secure

    server = start(context=lambda: Context(ssl.PROTOCOL_TLS_SERVER))
    with silent(server) as connection:
        assert begun.wait(PATIENCE)
        server._server.life_seconds = 0.0  # at the next look, it is too old
        assert cut_off(connection)


def test_every_handshake_has_the_context_in_force(start: Started) -> None:
    contexts = [ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2)]
    given: list[ssl.SSLContext] = []
    asked = threading.Semaphore(0)

    def context() -> ssl.SSLContext:
        given.append(contexts[len(given)])
        asked.release()
        return given[-1]

    server = start(context=context)
    for _ in contexts:
        with silent(server):
            assert asked.acquire(timeout=PATIENCE)
    assert given == contexts


# ------------------------------------------------------------ the queue


def test_the_queue_is_read_by_its_loop_alone() -> None:
    async def test() -> None:
        loop, here = asyncio.get_running_loop(), threading.get_ident()
        readers: list[int] = []

        class Watched(Admission):
            def estimated_wait(self) -> float:
                readers.append(threading.get_ident())
                return super().estimated_wait()

        admission, ledger = Watched(Policy(slots=1)), Ledger()
        collector = ProtectionCollector(admission, ledger, lambda: None, loop)
        admission.enter("somebody")

        def scrape() -> dict[str, float]:
            samples = [s for metric in collector.collect() for s in metric.samples]
            return {sample.name: sample.value for sample in samples}

        told = await asyncio.to_thread(scrape)
        assert told["quire_queue_waiting"] == 1  # of the moment, not of the start
        assert set(readers) == {here}

    run(test)


def test_a_loop_that_is_busy_or_closed_leaves_the_last_value() -> None:
    values = iter(range(10))
    loop = asyncio.new_event_loop()  # it never turns
    snapshot = LoopSnapshot(lambda: next(values), loop, patience=0.0)
    assert snapshot.read() == 0
    loop.close()
    assert snapshot.read() == 0

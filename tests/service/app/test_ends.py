"""How `quire serve` begins and ends, whatever its streams, its signals and its clients are like."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from support import programs
from support.fake_engine import Builder, Device
from support.free_ports import free_port
from support.harness import ask, first, read, run, serving, settings
from support.http2 import HEADERS, Rude
from support.patience import PATIENCE
from support.server_process import QUIRE, code_of, environment, long_request, process

from quire.engine.client.in_thread import ThreadLink
from quire.service.app import closing
from quire.service.app import process as serve_process
from quire.service.app.signals import Signals
from quire.service.security.auth import make_entry
from quire.v1 import inference_pb2_grpc as pb_grpc

PLACES = pytest.mark.parametrize("place", ["off", "on"])
GENERATE = "/quire.v1.InferenceService/Generate"


def started(stub: Any) -> Any:
    call = stub.Generate(long_request())
    assert next(call).HasField("started")
    return call


# ------------------------------------------------------------ signals


@PLACES
def test_sigusr1_writes_stacks_and_sighup_reads_files_again_and_neither_ends(
    place: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(make_entry("alice", "a-key-that-is-long-enough") + "\n")
    with process("--engine-process", place, "--api-keys", str(keys)) as server:
        server.address()
        for _ in range(2):
            server.process.send_signal(signal.SIGUSR1)
            server.wait_for("most recent call first")
        keys.write_text("no such line\n")
        for process_ in (server.process, *psutil.Process(server.process.pid).children()):
            process_.send_signal(signal.SIGHUP)  # as a terminal does that is closed
        server.wait_for("the change is not applied")
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0


@pytest.mark.parametrize(
    "second", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_second_signal_ends_it_whoever_reads_and_whatever_hangs(second: signal.Signals) -> None:
    with process("--drain-seconds", "600") as server:
        address = server.address()
        attacker = Rude(address)
        attacker.open(GENERATE)
        with grpc.insecure_channel(address) as channel:
            started(pb_grpc.InferenceServiceStub(channel))
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("draining")
            server.process.send_signal(second)
            assert server.end() == 128 + second


HANGS = """
import signal, sys, threading, time
from quire.service.app.signals import Signals
signals = Signals(float(sys.argv[1]))
print("ready", flush=True)
while True:
    time.sleep(0.01)  # a signal that another thread was given waits for the main thread to look up
"""


@pytest.mark.parametrize(("seconds", "signals"), [("0.01", 1), ("600", 2)])
def test_an_end_that_does_not_come_is_made(seconds: str, signals: int) -> None:
    """An event loop that never turns: by the timer after one signal, by the second signal."""
    words = [sys.executable, "-c", HANGS, seconds]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as hung:
        assert hung.stdout is not None and hung.stderr is not None
        hung.stdout.readline()
        hung.send_signal(signal.SIGTERM)
        if signals == 2:
            hung.send_signal(signal.SIGINT)
        code = hung.wait(PATIENCE)
        assert code in ((1,) if signals == 1 else (128 + signal.SIGINT, 128 + signal.SIGTERM))
        assert (b"Timeout" in hung.stderr.read()) == (signals == 1)


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """What would be called at each signal."""
    found: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", found.__setitem__)
    monkeypatch.setattr("faulthandler.register", lambda *_args, **_more: None)
    monkeypatch.setattr("quire.service.app.signals.answer_signals", lambda: None)
    return found


def test_a_signal_before_the_loop_is_not_lost(
    handlers: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = Signals(1.0)
    ends: list[float] = []
    monkeypatch.setattr(signals.deadman, "end_within", ends.append)
    handlers[signal.SIGTERM](signal.SIGTERM, None)

    async def asked() -> bool:
        return signals.stop_asked().is_set()

    assert asyncio.run(asked())
    assert ends == [1.0]


def test_a_signal_behind_the_loop_is_no_fault(
    handlers: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = Signals(1.0)
    monkeypatch.setattr(signals.deadman, "end_within", lambda _: None)

    async def asked() -> asyncio.Event:
        return signals.stop_asked()

    assert not asyncio.run(asked()).is_set()
    for number in (signal.SIGHUP, signal.SIGTERM):
        handlers[number](number, None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_loading_is_the_exit_code(
    number: int, handlers: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = Signals(1.0)
    monkeypatch.setattr(signals.deadman, "end_within", lambda _: None)
    over, on_signal = threading.Event(), handlers[number]

    def load() -> None:
        on_signal(number, None)
        over.wait(PATIENCE)

    async def test() -> None:
        builder = Builder(Device(), load)
        code = await serve_process._serve(
            settings(), lambda config: ThreadLink(config, builder), signals
        )
        over.set()
        assert code == 128 + number

    run(test)


# ------------------------------------------------------------ clients at the end


def test_unread_ends_do_not_hold_up_the_stop_and_the_others_get_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(closing, "_STALL", 0.05)

    async def test() -> None:
        async with serving(Device(step_seconds=0.02), drain_seconds=0.0) as running:
            attacker = await asyncio.to_thread(Rude, f"127.0.0.1:{running.server.port}", 0)
            stream = attacker.call(GENERATE, ask([300], max_tokens=1000).SerializeToString())
            await asyncio.to_thread(attacker.until, HEADERS, stream)
            call = running.stub.Generate(ask([300], max_tokens=1000, ignore_eos=True))
            await first(call)
            await running.server.drain()
            stopping = asyncio.create_task(running.server.stop(leaving=True))
            assert (await read(call)).code is grpc.StatusCode.UNAVAILABLE
            await stopping
            attacker.close()

    run(test)


def test_the_grace_follows_the_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as ends are written it goes on; its clock is the loop's, which is moved by hand."""
    monkeypatch.setattr(closing, "_LOOK", 0.0)

    async def test() -> None:
        open_call: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        now = 0.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        looks = 0

        def look() -> int:
            nonlocal now, looks
            looks, now = looks + 1, now + 0.4
            return min(looks, 5)  # five ends are written, then none

        ending = closing.Closing([], None, look, 10.0)
        assert not await ending._written([open_call])
        assert looks >= 5

    run(test)


def test_a_stop_tells_a_watcher_and_a_stream_the_same() -> None:
    with process("--drain-seconds", "0") as server:
        address = server.address()
        with grpc.insecure_channel(address) as channel:
            calls = [started(pb_grpc.InferenceServiceStub(channel)) for _ in range(20)]
            server.process.send_signal(signal.SIGTERM)
            assert {code_of(call) for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        assert server.end() == 0


def test_a_reader_of_metrics_that_does_not_read_holds_up_nothing() -> None:
    with process("--metrics-port", "0", "--drain-seconds", "0") as server:
        server.address()
        port = int(server.wait_for("metrics on").rsplit(":", 1)[1].split('"')[0])
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        for one in idle[1:]:
            one.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE).read()
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0


# ------------------------------------------------------------ standard streams


def close(*descriptors: int) -> Callable[[], None]:
    def before() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return before


def code_when_loaded(stub: Any) -> grpc.StatusCode:
    request = ask([300], max_tokens=2)
    return code_of(stub.Generate(request, wait_for_ready=True, timeout=PATIENCE))


STREAMS = ((0,), (1,), (2,), (0, 1, 2))


@pytest.mark.parametrize(
    ("place", "closed"),
    [
        pytest.param(place, closed, marks=() if (at + 2 * shift) % 4 == 1 else pytest.mark.long)
        for shift, place in enumerate(("off", "on"))
        for at, closed in enumerate(STREAMS)
    ],
)
def test_closed_standard_streams_keep_nobody_from_serving(
    place: str, closed: tuple[int, ...]
) -> None:
    """Some, and all in both places in the long run: a server of its own each, from scratch."""
    port = free_port()
    words = [QUIRE, "serve", "--port", str(port), "--num-blocks", "64", "--drain-seconds", "0"]
    server = subprocess.Popen(
        [*words, "--engine-process", place], env=environment(), preexec_fn=close(*closed)
    )
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = pb_grpc.InferenceServiceStub(channel)
            while (code := code_when_loaded(stub)) is grpc.StatusCode.UNAVAILABLE:
                assert server.poll() is None  # it is loading
            assert code is grpc.StatusCode.OK
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
    finally:
        server.kill()
        server.wait()


def test_a_reader_of_standard_output_that_has_gone_ends_nothing() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    server = programs.start(
        [QUIRE, "serve", "--port", "0", "--num-blocks", "64", "--health-port", "0"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    os.close(write_end)
    try:
        assert server.stderr is not None
        assert any("health checks on" in line for line in server.stderr)  # it serves
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
        assert select.select([server.stderr], [], [], 60)[0]
    finally:
        server.kill()
        server.communicate()


LEAVES = """
import threading, time
from quire.service.app.process import leave
threading.Thread(target=time.sleep, args=(600,)).start()
leave(3)
"""


def test_no_thread_at_work_holds_up_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES], timeout=PATIENCE, check=False)
    assert done.returncode == 3

"""`quire ray` itself: two replicas of pocket on this machine, over both faces. Runs where the
package ray is installed."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.patience import PATIENCE
from support.server_process import environment

from quire.clients.client import Client
from quire.clients.errors import CallError, DeadlineExceeded, InvalidRequest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"),
]
QUIRE = Path(sys.executable).with_name("quire")
LONG = 900


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def until(holds: Callable[[], Any]) -> Any:
    """What holds at last."""
    end = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < end, "it never holds"
        time.sleep(0.05)
    return found


@dataclass
class Running:
    process: "subprocess.Popen[str]"
    port: int
    http_port: int

    def engines(self) -> list[psutil.Process]:
        """Replicas' processes, by the title that Ray gives them."""
        mine = psutil.Process(self.process.pid).children(recursive=True)
        named = []
        for one in mine:
            try:
                if "ServeReplica:quire:engines" in " ".join(one.cmdline()):
                    named.append(one)
            except psutil.Error:
                continue
        return named


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    port, http_port = free_ports(2)
    words = [QUIRE, "ray", "--replicas", "2", "--max-replicas", "3", "--cpus", "0.5"]
    words += ["--target-ongoing", "4", "--port", str(port), "--http-port", str(http_port)]
    process = subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    found = Running(process, port, http_port)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving pocket on 127.0.0.1:"), line
        yield found
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            for one in psutil.Process().children(recursive=True):
                if one.pid != process.pid and "ray" in one.name():
                    one.kill()
            process.kill()
            process.wait()


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(f"127.0.0.1:{running.port}") as found:
        yield found


def test_nothing_listens_beyond_this_machine(running: Running) -> None:
    mine = [psutil.Process(running.process.pid)]
    mine += mine[0].children(recursive=True)
    assert len(mine) > 6
    beyond = set()
    for one in mine:
        for found in one.net_connections("inet"):
            if found.status == psutil.CONN_LISTEN and found.laddr.ip not in (
                "127.0.0.1",
                "::1",
                "::ffff:127.0.0.1",
            ):
                beyond.add((one.name(), found.laddr))
    assert not beyond


def test_both_faces_say_the_same_and_refusals_keep_their_codes(
    running: Running, client: Client
) -> None:
    said = client.generate("What is Quire?", max_tokens=12, temperature=0).text()
    body = {"model": "pocket", "prompt": "What is Quire?", "max_tokens": 12, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{running.http_port}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert json.load(answer)["choices"][0]["text"] == said
    with pytest.raises(InvalidRequest, match=r"sampling\.max_tokens"):
        client.generate("x", max_tokens=0).text()


def test_a_caller_that_leaves_or_is_late_ends_its_call_on_the_replica(client: Client) -> None:
    before = told(client)
    stream = client.generate("Tell me", max_tokens=LONG, ignore_eos=True)
    next(iter(stream.text_stream()))
    stream.close()
    with pytest.raises(DeadlineExceeded):
        client.generate("Tell", max_tokens=LONG, ignore_eos=True, timeout=0.3).text()
    until(lambda: told(client) == (0, before[1] + 2))


def told(client: Client) -> tuple[int, int]:
    """Calls that run, and calls that were cancelled, of both replicas, who answer in turn."""
    asked = [client.stats().requests for _ in range(2)]
    return sum(one.running for one in asked), sum(one.finished_cancelled for one in asked)


def test_a_stream_whose_replica_is_killed_goes_on_at_another(
    running: Running, client: Client
) -> None:
    whole = client.generate("Tell me", max_tokens=LONG, ignore_eos=True, temperature=0).text()
    engines = until(lambda: len(found := running.engines()) >= 2 and found)
    pieces: list[str] = []
    stream = client.generate("Tell me", max_tokens=LONG, ignore_eos=True, temperature=0)
    for piece in stream.text_stream():
        pieces.append(piece)
        if len(pieces) == 3:
            max(engines, key=lambda one: sum(one.cpu_times()[:2])).kill()
    assert "".join(pieces) == whole


def test_load_brings_a_third_replica(running: Running) -> None:
    until(lambda: len(running.engines()) >= 2)
    ending = threading.Event()

    def call() -> None:
        with Client(f"127.0.0.1:{running.port}") as own:
            while not ending.is_set():
                try:
                    own.generate("Tell", max_tokens=LONG, ignore_eos=True).text()
                except CallError:
                    return

    callers = [threading.Thread(target=call, daemon=True) for _ in range(24)]
    for one in callers:
        one.start()
    try:
        until(lambda: len(running.engines()) >= 3)
    finally:
        ending.set()
    for one in callers:
        one.join(PATIENCE)

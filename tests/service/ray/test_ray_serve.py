"""`quire ray` itself: pocket on this machine, by one replica and then by two, over both APIs, for
callers with keys. Runs where the package ray is installed."""

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.free_ports import free_ports
from support.patience import PATIENCE
from support.server_process import environment

from quire.clients.client import Client
from quire.clients.errors import (
    CallError,
    DeadlineExceeded,
    InvalidRequest,
    Unauthenticated,
)
from quire.service.security.keys import make_entry, new_key

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"),
]
QUIRE = Path(sys.executable).with_name("quire")
LONG = 900
TIMES = 16
HIGHEST = 3  # priority that the first key allows
OWNER, GUEST, STRANGER = new_key(), new_key(), new_key()


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
    at_first: int = field(init=False)

    def __post_init__(self) -> None:
        self.at_first = len(self.engines())

    def client(self, key: str | None = OWNER) -> Client:
        return Client(f"127.0.0.1:{self.port}", api_key=key)

    def engines(self) -> list[psutil.Process]:
        """Replicas' processes, by the title that Ray gives them; the eldest first."""
        mine = psutil.Process(self.process.pid).children(recursive=True)
        named = []
        for one in mine:
            try:
                if "ServeReplica:quire:engines" in " ".join(one.cmdline()):
                    named.append(one)
            except psutil.Error:
                continue
        return sorted(named, key=lambda one: one.create_time())

    def ask(self, path: str, body: Any = None, key: str | None = OWNER) -> tuple[int, Any]:
        """Status and body of the OpenAI API's answer; without a body of its own, of a GET."""
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.http_port}{path}"
        asked = urllib.request.Request(url, data, headers)
        try:
            with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    port, http_port = free_ports(2)  # Ray's own processes take many of the others
    folder = tmp_path_factory.mktemp("ray")
    keys, config = folder / "keys", folder / "quire.toml"
    owner = f"{make_entry('owner', OWNER)} operator max_priority={HIGHEST}"
    keys.write_text(f"{owner}\n{make_entry('guest', GUEST)}\n")
    config.write_text(f"[service]\napi_keys = {json.dumps(str(keys))}\n")
    words = [QUIRE, "ray", "--replicas", "1", "--max-replicas", "2", "--cpus", "0.5"]
    words += ["--target-ongoing", "4", "--port", str(port), "--http-port", str(http_port)]
    words += ["--config", str(config)]
    process = subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving pocket on 127.0.0.1:"), line
        yield Running(process, port, http_port)
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
    with running.client() as found:
        yield found


@pytest.fixture
def pair(running: Running, client: Client) -> Running:
    """With two replicas, both of which answer: load brings the second."""
    ending = threading.Event()

    def call() -> None:
        with running.client() as own:
            while not ending.is_set():
                try:
                    own.generate("Tell", max_tokens=LONG, ignore_eos=True).text()
                except CallError:
                    return

    callers = [threading.Thread(target=call, daemon=True) for _ in range(12)]
    if len(running.engines()) < 2:
        for one in callers:
            one.start()
    try:
        until(lambda: len(running.engines()) == 2)
    finally:
        ending.set()
    for one in callers:
        if one.ident is not None:
            one.join(PATIENCE)
    until(lambda: len(births(client)) == 2)  # idle, they answer in turn
    return running


def births(client: Client) -> list[int]:
    """When each replica became ready, in tenths of a second; the eldest first."""
    found = set()
    for _ in range(4):  # who is the least busy answers, else they take turns
        found.add(round(10 * (time.monotonic() - client.stats().uptime_seconds)))
    distinct = sorted(found)
    return [one for i, one in enumerate(distinct) if not i or one - distinct[i - 1] > 5]


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


BODY = {"model": "pocket", "prompt": "What is Quire?", "max_tokens": 12, "temperature": 0}


def test_both_apis_say_the_same_and_refusals_keep_their_codes(
    running: Running, client: Client
) -> None:
    said = client.generate("What is Quire?", max_tokens=12, temperature=0).text()
    status, answer = running.ask("/v1/completions", BODY)
    assert (status, answer["choices"][0]["text"]) == (200, said)
    with pytest.raises(InvalidRequest, match=r"sampling\.max_tokens"):
        client.generate("x", max_tokens=0).text()
    status, answer = running.ask("/v1/completions", {**BODY, "max_tokens": 0})
    assert (status, answer["error"]["param"]) == (400, "max_tokens")


def test_a_replica_asks_for_the_caller_s_own_key(running: Running) -> None:
    for key in (None, STRANGER):
        with running.client(key) as client:
            with pytest.raises(Unauthenticated):
                client.generate("x", max_tokens=1).text()
            with pytest.raises(Unauthenticated):
                client.stats()
    with running.client(GUEST) as client:
        assert client.generate("x", max_tokens=1, ignore_eos=True).text()
        assert len(client.embed(["x"])) == 1
        with pytest.raises(Unauthenticated, match="operator"):
            client.flush_cache()
    with running.client() as client:
        client.flush_cache()


def test_so_does_the_openai_api_whoever_was_let_in_before(running: Running) -> None:
    for key in (OWNER, GUEST):
        assert running.ask("/v1/models", key=key)[1]["data"][0]["id"] == "pocket"
        assert running.ask("/v1/completions", BODY, key)[0] == 200
    for key in (None, STRANGER):
        for path, body in (
            ("/v1/models", None),
            ("/v1/completions", BODY),
            ("/v1/completions", {**BODY, "max_tokens": 0}),
            ("/v1/chat/completions", b"{"),
        ):
            status, answer = running.ask(path, body, key)
            assert status == 401, (path, body)
            assert "key" in answer["error"]["message"]


def test_a_key_bounds_the_priority_over_both_apis(running: Running) -> None:
    for key, most in ((OWNER, HIGHEST), (GUEST, 0)):
        with running.client(key) as own:
            own.generate("x", max_tokens=1, priority=most).text()
            with pytest.raises(InvalidRequest, match=f"at most {most} for this client"):
                own.generate("x", max_tokens=1, priority=most + 1).text()
        # There the lower runs first.
        assert running.ask("/v1/completions", {**BODY, "priority": -most}, key)[0] == 200
        status, answer = running.ask("/v1/completions", {**BODY, "priority": -most - 1}, key)
        assert (status, answer["error"]["param"]) == (400, "priority")


def test_load_brings_a_second_replica(running: Running, pair: Running) -> None:
    assert (running.at_first, len(pair.engines())) == (1, 2)


@pytest.mark.usefixtures("pair")
def test_a_caller_that_leaves_or_is_late_ends_its_call_on_the_replica(client: Client) -> None:
    until(lambda: told(client)[0] == 0)
    before = told(client)
    for turn in range(TIMES):  # now while the proxy reads, now while it writes
        stream = client.generate("Tell me", max_tokens=LONG, ignore_eos=True)
        pieces = iter(stream.text_stream())
        for _ in range(1 + turn % 3):
            next(pieces)
        stream.close()
    with pytest.raises(DeadlineExceeded):
        client.generate("Tell", max_tokens=LONG, ignore_eos=True, timeout=0.3).text()
    until(lambda: told(client) == (0, before[1] + TIMES + 1))


def told(client: Client) -> tuple[int, int]:
    """Calls that run, and calls that were cancelled, of both replicas, who answer in turn."""
    asked = [client.stats().requests for _ in range(2)]
    return sum(one.running for one in asked), sum(one.finished_cancelled for one in asked)


def test_a_stream_whose_replica_is_killed_goes_on_at_another(pair: Running, client: Client) -> None:
    whole = client.generate("Tell me", max_tokens=LONG, ignore_eos=True, temperature=0).text()
    engines, born = pair.engines(), births(client)
    pieces: list[str] = []
    stream = client.generate("Tell me", max_tokens=LONG, ignore_eos=True, temperature=0)
    for piece in stream.text_stream():
        pieces.append(piece)
        if len(pieces) == 3:
            victim = engines[born.index(where_it_runs(client, born))]
            victim.kill()
    assert "".join(pieces) == whole
    assert not victim.is_running()


def where_it_runs(client: Client, born: list[int]) -> int:
    """When the replica became ready that the one stream is at: the idle one answers."""
    stats = client.stats()
    answering = time.monotonic() - stats.uptime_seconds
    known = min(born, key=lambda one: abs(one - 10 * answering))
    if stats.requests.running:
        return known
    return next(one for one in born if one != known)

"""The second part of `make chaos`: servers under attack are told to end, and their end is timed.

Each is a `quire serve` of its own with the pocket model. It is attacked, asked whether it still
serves others, sent SIGTERM, and must be gone within `drain_seconds` and END_SECONDS.
"""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.http1 import head, posted
from support.http2 import CANCEL, DATA, END_HEADERS, HEADERS, RESET, Rude, frame, headers, message
from support.server_process import Process, process

from quire.service.app.server import END_SECONDS
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

DRAIN = 1.0  # seconds
PATIENCE = 60
HTTP_CONNECTIONS = 3000
GENERATE, WATCH = "/quire.v1.InferenceService/Generate", "/grpc.health.v1.Health/Watch"
Attack = Callable[[Process, str], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class End:
    """What became of one server: whether it served under attack, and how it ended."""

    attack: str
    served: bool
    code: int
    seconds: float
    mib: float

    @property
    def wrong(self) -> str:
        """What was not as it should be; empty if all was."""
        if not self.served:
            return f"{self.attack}: others were not served"
        if self.code or self.seconds > DRAIN + END_SECONDS:
            return f"{self.attack}: exit {self.code} after {self.seconds:.1f} s"
        return ""


@contextlib.contextmanager
def watchers(_server: Process, address: str) -> Iterator[None]:
    """Watches of health that do not read."""
    attackers = [Rude(address) for _ in range(20)]
    for attacker in attackers:
        for _ in range(10):
            attacker.call(WATCH)
    yield
    for attacker in attackers:
        attacker.close()


@contextlib.contextmanager
def bodies(_server: Process, address: str) -> Iterator[None]:
    """Requests of 3.9 MB without their ends."""
    part = message(bytes(4_000_000))[:3_900_000]

    def send(attacker: Rude) -> None:
        with contextlib.suppress(OSError):
            stream = attacker.open(GENERATE)
            for begin in range(0, len(part), 1 << 14):
                attacker.socket.sendall(frame(DATA, 0, stream, part[begin : begin + (1 << 14)]))

    attackers = [Rude(address, 1 << 16) for _ in range(250)]
    for attacker in attackers:
        threading.Thread(target=send, args=(attacker,), daemon=True).start()
    yield
    for attacker in attackers:
        attacker.close()


@contextlib.contextmanager
def resets(_server: Process, address: str) -> Iterator[None]:
    """Calls that are opened and reset, as fast as they go."""
    over = threading.Event()

    def send() -> None:
        attacker, block, begin = Rude(address), headers(GENERATE), 1
        with contextlib.suppress(OSError):
            while not over.is_set():
                burst = b""
                for stream in range(begin, begin + 200, 2):
                    burst += frame(HEADERS, END_HEADERS, stream, block)
                    burst += frame(RESET, 0, stream, CANCEL.to_bytes(4, "big"))
                begin += 200
                attacker.socket.sendall(burst)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield
    over.set()


@contextlib.contextmanager
def connections(_server: Process, address: str) -> Iterator[None]:
    """Connections that say nothing; fewer than there is room for."""
    host, port = address.rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection((host, int(port))))
        yield


@contextlib.contextmanager
def frozen(server: Process, _address: str) -> Iterator[None]:
    """Stopped for longer than the watchdog's bounds, and gone on."""
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    server.process.send_signal(signal.SIGCONT)
    yield


@contextlib.contextmanager
def http_connections(server: Process, address: str) -> Iterator[None]:
    """3,000 of the OpenAI API, in equal parts: streams that nobody reads, idle ones that are kept
    alive, and heads without an end."""
    told = server.wait_for("OpenAI API on").strip().removesuffix("/v1")
    port = int(told.rsplit(":", 1)[1])
    stream = {"model": "pocket", "prompt": "Once", "stream": True, "max_tokens": 2000}
    asks = (
        posted("/v1/completions", {**stream, "ignore_eos": True}),
        head("GET", "/v1/models"),
        head("POST", "/v1/completions")[:-4],
    )
    with contextlib.ExitStack() as stack:
        for number in range(HTTP_CONNECTIONS):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.settimeout(PATIENCE)
            one.connect(("127.0.0.1", port))
            one.sendall(asks[number % len(asks)])
            if number % len(asks) == 1:
                assert one.recv(4096).startswith(b"HTTP/1.1 200 ")
        _until_asked(address, HTTP_CONNECTIONS // len(asks))
        yield


def _until_asked(address: str, calls: int) -> None:
    """Until the server has heard of so many calls."""
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        heard, until = 0, time.monotonic() + PATIENCE
        while heard < calls and time.monotonic() < until:
            told = stub.Stats(pb.StatsRequest(), timeout=PATIENCE).requests
            heard = told.accepted + sum(told.refused.values())


def _free_port() -> tuple[str, ...]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return ("--http-port", str(found.getsockname()[1]))


def _no_words() -> tuple[str, ...]:
    return ()


def _impatient() -> tuple[str, ...]:
    return ("--watchdog-seconds", "1", "--watchdog-exit-seconds", "1")


ATTACKS: dict[str, tuple[Attack, Callable[[], tuple[str, ...]]]] = {
    "watchers that do not read": (watchers, _no_words),
    "bodies without an end": (bodies, _no_words),
    "resets": (resets, _no_words),
    "silent connections": (connections, _no_words),
    "3,000 HTTP connections": (http_connections, _free_port),
    "stopped and gone on": (frozen, _impatient),
}


def ends() -> list[End]:
    """Every attack against a server of its own."""
    return [_end(name, attack, words()) for name, (attack, words) in ATTACKS.items()]


def _end(name: str, attack: Attack, words: tuple[str, ...]) -> End:
    with process("--drain-seconds", str(DRAIN), *words) as server:
        address = server.address()
        with attack(server, address):
            served = _is_healthy(address) if attack is http_connections else _serves(address)
            resident = psutil.Process(server.process.pid).memory_info().rss / 2**20
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait(PATIENCE)
            return End(name, served, code, time.monotonic() - began, resident)


def _is_healthy(address: str) -> bool:
    """For a server whose queue is full."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        told = stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        return bool(told.status == health_pb2.HealthCheckResponse.SERVING)


def _serves(address: str) -> bool:
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[300, 301]))
    request.sampling.max_tokens = 4
    with grpc.insecure_channel(address) as channel:
        call = pb_grpc.InferenceServiceStub(channel).Generate(request, timeout=PATIENCE)
        with contextlib.suppress(grpc.RpcError):
            for _ in call:
                pass
        return bool(call.code() is grpc.StatusCode.OK)


def show(found: list[End]) -> None:
    """A line an attack."""
    print(f"\nends under attack (at most {DRAIN + END_SECONDS:g} s)")
    for end in found:
        print(f"  {end.attack:<28}exit {end.code:>4}{end.seconds:>8.2f} s{end.mib:>8.0f} MiB")
    print(flush=True)

"""The server that is attacked: Pocket by `quire serve`, or all of it over a fake device.

Over a fake device a stream's gaps have a length of their own, which what is measured can be held
against; Pocket's tokens come faster than a server beside its engine cares to write them.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

PATIENCE = 60.0
HERE = Path(__file__).resolve()


@dataclass(frozen=True)
class Ports:
    """Of the server's two APIs."""

    grpc: int
    http: int


@contextlib.contextmanager
def served(step_ms: float) -> Iterator[tuple[Ports, psutil.Process]]:
    """A server in a process of its own. step_ms: of the fake device; 0: Pocket."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QUIRE_")}
    http_port = _free_port()
    words = [sys.executable, str(HERE), str(step_ms)]
    if not step_ms:
        quire = str(Path(sys.executable).with_name("quire"))
        words = [quire, "serve", "pocket", "--port", "0", "--http-port", str(http_port)]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment,
    )  # fmt: skip
    assert process.stdout is not None and process.stdin is not None
    try:
        if step_ms:
            ports = Ports(*json.loads(process.stdout.readline()))
        else:
            ports = Ports(_told(iter(process.stdout.readline, "")), http_port)
        _wait_for(ports.http)
        yield ports, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.stdin.close()
        process.wait(PATIENCE)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _told(lines: Iterator[str]) -> int:
    """The port of gRPC, from the line that says where it serves."""
    for line in lines:
        if line.startswith("serving "):
            return int(line.rsplit(":", 1)[1])
    raise RuntimeError("the server has ended")


def _wait_for(port: int) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise RuntimeError("the server does not listen")


def held(process: psutil.Process) -> dict[str, float]:
    """What the server and its helpers hold."""
    every = [process, *process.children(recursive=True)]
    return {
        "rss_mib": sum(one.memory_info().rss for one in every) / (1 << 20),
        "threads": sum(one.num_threads() for one in every),
        "files": sum(one.num_fds() for one in every),
    }


async def serve(step_seconds: float) -> None:
    """Over a fake device, until SIGTERM; prints both ports."""
    from fake_device import VOCAB_SIZE, FakeBuilder

    from quire.engine.client.async_engine import AsyncEngine
    from quire.engine.client.in_thread import ThreadLink
    from quire.engine.config import EngineConfig
    from quire.engine.loop import garbage
    from quire.service.app.server import Server
    from quire.service.constraints.grammars import Grammars
    from quire.service.models import pocket
    from quire.service.models.resolve import ResolvedModel
    from quire.service.settings import ServiceConfig, Settings

    config = EngineConfig(max_model_len=131_072, num_blocks=20_000, max_num_batched_tokens=32_768)
    engine = AsyncEngine(ThreadLink(config, FakeBuilder(step_seconds, Grammars())))
    settings = Settings(config, ServiceConfig(port=0, reflection=False))
    server = Server(settings, ResolvedModel("hostile", "fake", pocket.directory()), engine)
    await server.open(131_072)
    await server.load(VOCAB_SIZE)
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listening.setblocking(False)
    await server.open_http([listening])
    garbage.freeze()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    print(json.dumps([server.port, server.http_port]), flush=True)
    await ended.wait()
    await server.stop()


if __name__ == "__main__":
    sys.path += [str(HERE.parents[2] / "benchmarks")]
    from quire.service import malloc_memory
    from quire.service.app.event_loop import new_event_loop
    from quire.service.app.process import _SWITCH_SECONDS
    from quire.service.telemetry import logs

    logs.set_up("text", "error")
    sys.setswitchinterval(_SWITCH_SECONDS)
    malloc_memory.few_arenas()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(float(sys.argv[1]) / 1e3))

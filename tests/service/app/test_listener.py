"""A port that gRPC has closed over a call it could not read is opened again."""

import asyncio
import logging
from typing import Any

import grpc
import pytest
from support.fake_engine import Device
from support.harness import Running, ask, first, generate, read, run, serving
from support.http2 import END_HEADERS, HEADERS, Rude, frame, headers
from support.patience import PATIENCE

from quire.service.app import listener
from quire.service.app.listener import Keeper
from quire.v1 import inference_pb2_grpc as pb_grpc

NO_TEXT = headers("/x").replace(b"\x02/x", b"\x02/\xff")


def send_no_text(port: int) -> Rude:
    """A stranger who stays: gRPC leaves the connection open for 20 s."""
    stranger = Rude(f"127.0.0.1:{port}")
    stranger.socket.sendall(frame(HEADERS, END_HEADERS, 1, NO_TEXT))
    return stranger


class Port:
    """One that gRPC closes when it has been looked at, over a fault that came just before."""

    port = 1
    keeper: Keeper

    def __init__(self) -> None:
        self.closed = False

    async def reopen_if_closed(self) -> bool:
        was, self.closed = self.closed, not self.closed
        if self.closed:
            self.fault()
        return was

    def fault(self) -> None:
        context = {"exception": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text")}
        self.keeper._on_fault(asyncio.get_running_loop(), context)


def test_a_fault_that_comes_while_ports_are_looked_at_is_looked_into_as_well(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "_LOOKS", (0.0,))

    async def test() -> None:
        port: Any = Port()
        port.keeper = Keeper([port])
        port.fault()
        await port.keeper._looking
        assert not port.closed and "is open again" in caplog.text

    run(test)


async def another(running: Running) -> grpc.StatusCode:
    """Of a call over a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    address = f"127.0.0.1:{running.server.port}"
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        request = ask([300], max_tokens=2)
        return (await read(stub.Generate(request, wait_for_ready=True, timeout=PATIENCE))).code


def test_a_path_that_is_no_text_closes_no_port(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving(Device(step_seconds=0.01), health_port=0) as running:
            call = running.stub.Generate(ask([300], max_tokens=50, ignore_eos=True))
            await first(call)
            strangers = []
            for _ in range(3):
                strangers.append(await asyncio.to_thread(send_no_text, running.server.port))
                while "is open again" not in caplog.text:
                    await asyncio.sleep(0.01)
                caplog.clear()
                assert await another(running) is grpc.StatusCode.OK
            assert (await read(call)).code is grpc.StatusCode.OK
            assert (await generate(running, ask([300], max_tokens=2))).code is grpc.StatusCode.OK

    with caplog.at_level(logging.ERROR):
        run(test)

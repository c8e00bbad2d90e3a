"""A port that gRPC has closed over a call it could not read is opened again."""

import asyncio
import logging

import grpc
import pytest
from support.fake_engine import Device
from support.harness import Running, ask, first, generate, read, run, serving
from support.http2 import END_HEADERS, HEADERS, Rude, frame, headers
from support.patience import PATIENCE

from quire.v1 import inference_pb2_grpc as pb_grpc

NO_TEXT = headers("/x").replace(b"\x02/x", b"\x02/\xff")


def send_no_text(port: int) -> Rude:
    """A stranger who stays: gRPC leaves the connection open for 20 s."""
    stranger = Rude(f"127.0.0.1:{port}")
    stranger.socket.sendall(frame(HEADERS, END_HEADERS, 1, NO_TEXT))
    return stranger


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

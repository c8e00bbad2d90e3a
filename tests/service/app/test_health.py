"""What probes are told, and that nobody who asks can hold up the answer."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.fake_engine import DeviceLost
from support.harness import ask, generate, run, serving
from support.http2 import HEADERS, Rude
from support.server_process import process

from quire.service.app import health as module
from quire.service.app.health import LIVENESS, READINESS, Health

WATCH = "/grpc.health.v1.Health/Watch"
STATUS = health_pb2.HealthCheckResponse
EVERYTHING = b""  # a HealthCheckRequest for ""


@contextlib.asynccontextmanager
async def probed(health: Health) -> AsyncIterator[tuple[Any, str]]:
    """A stub, and the server's address."""
    server = grpc.aio.server()
    health.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel), f"127.0.0.1:{port}"
    await server.stop(None)


def asked(name: str = "") -> Any:
    return health_pb2.HealthCheckRequest(service=name)


async def code_of(call: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = await call.code()
    return code


def test_a_check_says_what_is_true_under_every_name() -> None:
    async def test() -> None:
        health = Health()
        async with probed(health) as (stub, _):
            for name in READINESS:
                assert (await stub.Check(asked(name))).status == STATUS.NOT_SERVING
            assert (await stub.Check(asked(LIVENESS))).status == STATUS.SERVING
            health.set_ready(True)
            health.set_alive(False)
            for name in READINESS:
                assert (await stub.Check(asked(name))).status == STATUS.SERVING
            assert (await stub.Check(asked(LIVENESS))).status == STATUS.NOT_SERVING
            assert await code_of(stub.Check(asked("nobody"))) is grpc.StatusCode.NOT_FOUND
            listed = (await stub.List(health_pb2.HealthListRequest())).statuses
            assert {name: answer.status for name, answer in listed.items()} == {
                **dict.fromkeys(READINESS, STATUS.SERVING),
                LIVENESS: STATUS.NOT_SERVING,
            }

    run(test)


def test_a_watch_hears_each_change_once_and_of_the_end() -> None:
    async def test() -> None:
        health = Health()
        async with probed(health) as (stub, _):
            watch, stranger = stub.Watch(asked()), stub.Watch(asked("nobody"))
            assert (await watch.read()).status == STATUS.NOT_SERVING
            assert (await stranger.read()).status == STATUS.SERVICE_UNKNOWN
            health.set_ready(True)
            assert (await watch.read()).status == STATUS.SERVING
            health.set_ready(True)  # no news
            health.close()
            assert (await watch.read()).status == STATUS.NOT_SERVING
            assert await code_of(watch) is grpc.StatusCode.UNAVAILABLE
            assert await code_of(stranger) is grpc.StatusCode.UNAVAILABLE

    run(test)


def test_watches_are_bounded_and_their_places_come_back(monkeypatch: Any) -> None:
    async def test() -> None:
        monkeypatch.setattr(module, "MAX_WATCHES", 3)
        monkeypatch.setattr(module, "MAX_WATCHES_PER_CONNECTION", 2)
        health = Health()
        async with probed(health) as (stub, address):
            first = [stub.Watch(asked()) for _ in range(2)]
            for watch in first:
                await watch.read()
            assert await code_of(stub.Watch(asked())) is grpc.StatusCode.RESOURCE_EXHAUSTED
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(address, options=options) as other:
                others = health_pb2_grpc.HealthStub(other)
                third = others.Watch(asked())
                await third.read()
                assert await code_of(others.Watch(asked())) is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert (await others.Check(asked())).status == STATUS.NOT_SERVING
                first[0].cancel()
                while health.watches == 3:
                    await asyncio.sleep(0)
                await others.Watch(asked()).read()

    run(test)


def test_a_watch_that_does_not_read_holds_up_no_change() -> None:
    async def test() -> None:
        health = Health()
        async with probed(health) as (stub, address):
            rude = await asyncio.to_thread(Rude, address)
            with contextlib.closing(rude):
                stream = rude.call(WATCH, EVERYTHING)
                await asyncio.to_thread(rude.until, HEADERS, stream)  # it writes, and may not
                health.set_ready(True)
                assert (await stub.Check(asked())).status == STATUS.SERVING
                watch = stub.Watch(asked())
                assert (await watch.read()).status == STATUS.SERVING
                health.close()
                assert (await watch.read()).status == STATUS.NOT_SERVING

    run(test)


def test_a_dead_engine_is_told_whoever_watches_and_does_not_read() -> None:
    async def test() -> None:
        async with serving(health_port=0) as running:
            for port in (running.server.port, running.server.health_port):
                rude = await asyncio.to_thread(Rude, f"127.0.0.1:{port}")
                stream = rude.call(WATCH, EVERYTHING)
                await asyncio.to_thread(rude.until, HEADERS, stream)
            running.device.fail = DeviceLost()
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.UNAVAILABLE
            await running.server.wait_dead()
            stub = health_pb2_grpc.HealthStub(running.channel)
            assert (await stub.Check(asked())).status == STATUS.NOT_SERVING

    run(test)


def test_sigterm_ends_the_process_whoever_watches_on_either_port() -> None:
    with process("--health-port", "0", "--drain-seconds", "0.2") as server:
        address = server.address()
        health = server.wait_for("health checks on").split()[-1]
        attackers = [Rude(address), Rude(health)]
        for attacker in attackers:
            attacker.until(HEADERS, attacker.call(WATCH, EVERYTHING))
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert any("draining" in line for line in server.errors)

"""What strangers may have on their way before anybody knows them: bodies, calls, connections."""

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from support.fake_engine import Device
from support.harness import ask, generate, read, run, serving
from support.http2 import CANCEL, DATA, END_HEADERS, HEADERS, RESET, Rude, frame, headers, message
from support.patience import PATIENCE

from quire.engine.errors import ConfigError
from quire.service.admission import intake
from quire.service.admission.intake import Places, Reading, places_for
from quire.service.app import ports
from quire.service.errors import Refusal
from quire.service.security.auth import make_entry
from quire.service.settings import ServiceConfig
from quire.v1 import inference_pb2_grpc as pb_grpc

GENERATE = "/quire.v1.InferenceService/Generate"
CALLS = 2000  # of a burst


def test_places_are_so_many_that_their_bytes_are_bounded() -> None:
    assert places_for(4 << 20) == 16
    assert places_for(1 << 10) == (64 << 20) >> 10
    assert places_for(1 << 30) == 8


async def held(reading: Reading) -> None:
    """A body that never ends."""
    async with reading:
        await asyncio.Event().wait()


async def refused(task: "asyncio.Task[None]") -> str:
    """Why it ends."""
    with pytest.raises(Refusal) as caught:
        await asyncio.wait_for(task, PATIENCE)
    return caught.value.reason


def test_who_waits_gets_the_place_of_who_leaves_and_slow_connections_come_last() -> None:
    async def test() -> None:
        places, order = Places(1), []
        places.late("slow")
        done = asyncio.Event()

        async def one(connection: str) -> None:
            async with places.place(connection):
                order.append(connection)
                if connection == "first":
                    await done.wait()

        tasks = [asyncio.create_task(one(c)) for c in ("first", "slow", "a", "gone", "b")]
        while places.waiting < 4:
            await asyncio.sleep(0)
        tasks[3].cancel()
        done.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["first", "a", "b", "slow"]
        assert places.waiting == places.reading == 0
        async with places.place("again"):
            pass

    run(test)


def test_a_place_is_given_up_to_those_who_wait_and_to_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake, "GRACE_SECONDS", 0.0)

    async def test() -> None:
        places = Places(2)
        old, young = places.place("old"), places.place("young")
        tasks = [asyncio.create_task(held(reading)) for reading in (old, young)]
        while places.reading < 2:
            await asyncio.sleep(0)
        assert not old.given_up
        waits = asyncio.create_task(places.place("new").__aenter__())
        while not old.given_up:
            await asyncio.sleep(0)
        assert not young.given_up
        tasks[1].cancel()
        assert await refused(tasks[0]) == "SLOW_REQUEST" and not tasks[0].cancelling()
        await waits

    run(test)


def test_who_is_cancelled_and_loses_the_place_too_is_cancelled() -> None:
    async def test() -> None:
        places = Places(1)
        task = asyncio.create_task(held(reading := places.place("gone")))
        while not places.reading:
            await asyncio.sleep(0)
        task.cancel()
        reading.give_up()
        await asyncio.wait({task})
        assert task.cancelled() and not places.reading

    run(test)


def test_who_gets_a_place_as_the_server_closes_is_refused() -> None:
    async def test() -> None:
        places, begun = Places(1), []

        async def read(name: str) -> None:
            async with places.place(name):
                begun.append(name)
                await asyncio.Event().wait()

        first, second = (asyncio.create_task(read(name)) for name in "ab")
        while not places.waiting:
            await asyncio.sleep(0)
        first.cancel()
        while places.reading:
            await asyncio.sleep(0)
        assert places.waiting, "it has the place, and does not know it yet"
        places.close()
        while begun == ["a"] and not second.done():
            await asyncio.sleep(0)
        assert begun == ["a"] and await refused(second) == "DRAINING"
        assert not places.reading and not places.waiting

    run(test)


def test_more_than_may_wait_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_WAITING", 1)

    async def test() -> None:
        places = Places(1)
        async with places.place("a"):
            waits = asyncio.create_task(places.place("b").__aenter__())
            await asyncio.sleep(0)
            with pytest.raises(Refusal) as caught:
                await places.place("c").__aenter__()
            assert caught.value.reason == "TOO_MANY_CALLS" and caught.value.retry_after
            waits.cancel()

    run(test)


def test_connections_take_turns() -> None:
    async def test() -> None:
        places = Places(1)
        order: list[str] = []

        async def call(name: str) -> None:
            async with places.place(name):
                order.append(name)

        async with places.place("many"):
            calls = [asyncio.create_task(call("many")) for _ in range(50)]
            await asyncio.sleep(0)
            calls += [asyncio.create_task(call(name)) for name in ("one", "two", "one")]
            await asyncio.sleep(0)
            assert places.waiting == 53
        await asyncio.gather(*calls)
        assert order[:4] == ["one", "two", "many", "one"]
        assert (places.waiting, places.reading) == (0, 0)

    run(test)


def test_where_too_many_wait_the_connection_with_the_most_loses_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake, "MAX_WAITING", 3)

    async def test() -> None:
        places = Places(1)

        async def call(name: str) -> str:
            async with places.place(name):
                return name

        async with places.place("a"):
            many = [asyncio.create_task(call("many")) for _ in range(3)]
            await asyncio.sleep(0)
            other = asyncio.create_task(call("other"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert places.waiting == 3
        ends = await asyncio.gather(*many, other, return_exceptions=True)
        assert ends[:2] == ["many", "many"] and ends[3] == "other"
        assert isinstance(ends[2], Refusal) and ends[2].reason == "TOO_MANY_CALLS"

    run(test)


async def rude(running: Any) -> Rude:
    return await asyncio.to_thread(Rude, f"127.0.0.1:{running.server.port}", 1 << 16)


def unfinished(attacker: Rude) -> int:
    """A call whose body lacks its last byte."""
    stream = attacker.open(GENERATE)
    attacker.socket.sendall(frame(DATA, 0, stream, message(b"xx")[:-1]))
    return stream


def test_bodies_that_never_end_leave_room_for_others_and_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(intake, "MAX_BODY_BYTES", 0)  # 8 places

    async def test() -> None:
        async with serving() as running:
            attackers = [await rude(running) for _ in range(10)]
            streams = [unfinished(attacker) for attacker in attackers for _ in range(2)]
            assert (await generate(running, ask([300], max_tokens=2))).code is grpc.StatusCode.OK
            ended = await asyncio.to_thread(attackers[0].until, HEADERS, streams[0])
            assert b"grpc-status\x018" in ended  # RESOURCE_EXHAUSTED
            assert b"grpc-retry-pushback-ms" in ended
            stats = await running.stats()
            assert stats.requests.refused["RESOURCE_EXHAUSTED"] >= 1
            assert running.server.ledger.refusals["SLOW_REQUEST"] >= 1
            for attacker in attackers:
                attacker.close()

    run(test)


def test_a_body_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BODY_SECONDS", 0.01)

    async def test() -> None:
        async with serving() as running:
            attacker = await rude(running)
            stream = unfinished(attacker)
            assert b"grpc-status\x018" in await asyncio.to_thread(attacker.until, HEADERS, stream)
            attacker.close()

    run(test)


def test_each_body_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though there is one timer for all."""
    monkeypatch.setattr(intake, "BODY_SECONDS", 0.01)

    async def test() -> None:
        places, loop = Places(3), asyncio.get_running_loop()
        readings = [places.place(name) for name in ("first", "second")]
        first, second = (asyncio.create_task(held(reading)) for reading in readings)
        while places.reading < 2:
            await asyncio.sleep(0)
        readings[1].since += 0.02  # as if it had begun so much later
        assert await refused(first) == "SLOW_REQUEST"
        assert not second.done()
        assert await refused(second) == "SLOW_REQUEST"
        assert loop.time() >= readings[1].since
        assert await refused(asyncio.create_task(held(places.place("third")))) == "SLOW_REQUEST"

    run(test)


def half_a_body(port: int) -> bytes:
    """All that the OpenAI API answers to a request whose body lacks a byte."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        answer = b""
        while more := connection.recv(1 << 16):
            answer += more
    return answer


def test_at_the_end_whoever_has_yet_to_say_what_they_want_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those whose bodies are read, and those who wait for their turn."""
    monkeypatch.setattr(intake, "GRACE_SECONDS", PATIENCE)
    monkeypatch.setattr(intake, "BODY_SECONDS", PATIENCE)
    monkeypatch.setattr(intake, "MAX_BODY_BYTES", 0)  # 8 places

    async def test() -> None:
        async with serving(http=True) as running:
            over_http = asyncio.create_task(
                asyncio.to_thread(half_a_body, running.server.http_port)
            )
            while running.server._places.reading < 1:
                await asyncio.sleep(0.005)
            attacker = await rude(running)
            streams = [unfinished(attacker) for _ in range(9)]
            while running.server._places.waiting < 2:
                await asyncio.sleep(0.005)
            ended = asyncio.create_task(asyncio.to_thread(attacker.until, HEADERS, streams[0]))
        assert b"the server is shutting down" in await ended
        assert running.server.ledger.refusals == {"DRAINING": 10}
        attacker.close()
        answer = await over_http
        assert answer.startswith(b"HTTP/1.1 503 ") and b'"draining"' in answer

    run(test)


def test_a_caller_without_a_key_is_refused_before_their_body_is_there(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(make_entry("alice", "a-key-that-is-long-enough") + "\n")

    async def test() -> None:
        async with serving(api_keys=str(keys)) as running:
            attacker = await rude(running)
            stream = attacker.open(GENERATE)
            ended = await asyncio.to_thread(attacker.until, HEADERS, stream)
            assert b"grpc-status\x0216" in ended  # UNAUTHENTICATED
            attacker.close()
            assert running.server.ledger.refusals["UNAUTHENTICATED"] == 1

    run(test)


def test_a_call_without_a_body_is_malformed() -> None:
    async def test() -> None:
        async with serving() as running:
            call = running.channel.stream_stream(GENERATE)(iter([]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(test)


def test_in_a_burst_each_call_has_a_status_of_ours_and_is_counted() -> None:
    """More calls at once than gRPC surely lets wait by default (1,000; by chance up to 3,000)."""

    async def test() -> None:
        device = Device()
        device.hold()  # however slowly the calls come in, nobody leaves before all are judged
        async with serving(device, max_waiting=16, engine={"max_num_seqs": 8}) as running:
            calls = [running.stub.Generate(ask([300], max_tokens=1)) for _ in range(CALLS)]
            reads = [asyncio.ensure_future(read(call)) for call in calls]
            await running.until(
                lambda s: s.requests.accepted + s.requests.refused["RESOURCE_EXHAUSTED"] == CALLS
            )
            device.release()
            answers = await asyncio.gather(*reads)
            codes = {answer.code for answer in answers}
            assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
            refused = [a for a in answers if a.code is grpc.StatusCode.RESOURCE_EXHAUSTED]
            assert refused and all(a.rich(error_details_pb2.RetryInfo) for a in refused)
            stats = await running.stats()
            assert stats.requests.accepted + len(refused) == CALLS
            assert stats.requests.refused["RESOURCE_EXHAUSTED"] == len(refused)

    run(test)


def test_resets_on_one_connection_cancel_nobody_else() -> None:
    async def test() -> None:
        async with serving() as running:
            attacker, block = await rude(running), headers(GENERATE)
            for _ in range(40):
                burst = b""
                for _ in range(100):
                    stream, attacker._next = attacker._next, attacker._next + 2
                    burst += frame(HEADERS, END_HEADERS, stream, block)
                    burst += frame(RESET, 0, stream, CANCEL.to_bytes(4, "big"))
                with contextlib.suppress(OSError):  # it may be cut off
                    await asyncio.to_thread(attacker.socket.sendall, burst)
            answers = await asyncio.gather(
                *(generate(running, ask([300], max_tokens=1)) for _ in range(50))
            )
            assert {answer.code for answer in answers} == {grpc.StatusCode.OK}
            attacker.close()

    run(test)


def test_more_connections_than_there_is_room_for_are_closed_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ports, "MAX_CONNECTIONS", 4)

    async def test() -> None:
        async with serving() as running:
            assert (await generate(running, ask([300], max_tokens=1))).code is grpc.StatusCode.OK
            address = ("127.0.0.1", running.server.port)
            strangers = [socket.create_connection(address) for _ in range(12)]
            for stranger in strangers:
                stranger.settimeout(PATIENCE)
            first = await asyncio.gather(
                *(asyncio.to_thread(_first_byte, stranger) for stranger in strangers)
            )
            assert first.count(b"") == 9  # the fourth place is the channel's
            assert (await generate(running, ask([300], max_tokens=1))).code is grpc.StatusCode.OK
            for stranger in strangers:
                stranger.close()

    run(test)


def _first_byte(connection: socket.socket) -> bytes:
    """What the server says first: its settings; nothing if it has hung up."""
    try:
        return connection.recv(1)
    except ConnectionError:
        return b""


def test_descriptors_are_kept_for_files_and_metrics() -> None:
    assert ports.max_connections(256, probes=False) == 160
    assert ports.max_connections(256, probes=True) == 96
    assert ports.max_connections(1 << 20, probes=True) == ports.MAX_CONNECTIONS
    with pytest.raises(ConfigError, match="RLIMIT_NOFILE = 96"):
        ports.max_connections(96, probes=False)


def test_metadata_is_limited_to_16_kib_and_not_by_chance() -> None:
    async def test() -> None:
        async with serving() as running:
            for size, code in ((15 << 10, "OK"), (17 << 10, "RESOURCE_EXHAUSTED")):
                for _ in range(5):
                    answer = await generate(
                        running, ask([300], max_tokens=1), metadata=[("x-long", "x" * size)]
                    )
                    assert answer.code.name == code

    run(test)


def test_localhost_is_every_address_of_this_machine_by_that_name() -> None:
    async def test() -> None:
        async with serving(host="localhost") as running:
            families = [socket.AF_INET]
            with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
                families.append(socket.AF_INET6)
            for family in families:
                host = "127.0.0.1" if family == socket.AF_INET else "[::1]"
                async with grpc.aio.insecure_channel(f"{host}:{running.server.port}") as channel:
                    stub = pb_grpc.InferenceServiceStub(channel)
                    assert (await read(stub.Generate(ask([300], max_tokens=1)))).finished

    run(test)


def test_the_options_bound_what_grpc_would_not() -> None:
    options = dict(ports.channel_options(1 << 20, 7, ServiceConfig()))
    assert options["grpc.max_allowed_incoming_connections"] == 7
    assert options["grpc.http2.bdp_probe"] == 0
    assert options["grpc.max_concurrent_streams"] == ports.MAX_STREAMS

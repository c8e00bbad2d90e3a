"""Bytes that are no message, and messages that are too large: one word to the caller, one line of
the log, whatever method they name."""

import logging

import grpc
import pytest
from support.harness import run, serving
from support.patience import PATIENCE

CHECK, WATCH, LIST = (f"/grpc.health.v1.Health/{name}" for name in ("Check", "Watch", "List"))
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
OWN = "/quire.v1.InferenceService/"
GARBAGE = b"\xff\xff\xff"
GRPC = "grpc._cython.cygrpc"


async def refused(channel: grpc.aio.Channel, method: str, body: bytes) -> tuple[str, str]:
    """Status and words that a call with this body ends with."""
    call = channel.unary_stream(method)(body, timeout=PATIENCE)
    code, details = await call.code(), await call.details()
    return code.name, details


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """Method, code and reason of each call that was refused."""
    fields = [r.__dict__["fields"] for r in caplog.records if r.getMessage() == "request refused"]
    return [(f["method"], f["code"], f["reason"]) for f in fields]


def test_bytes_that_are_no_message_are_an_invalid_argument_and_no_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "quire.service")
    methods = [CHECK, WATCH, LIST, REFLECTION, f"{OWN}Stats", f"{OWN}Generate"]

    async def test() -> None:
        async with serving(health_port=0) as running:
            for method in methods:
                told = await refused(running.channel, method, GARBAGE)
                assert told == ("INVALID_ARGUMENT", "the message cannot be decoded"), method
            address = f"127.0.0.1:{running.server.health_port}"
            async with grpc.aio.insecure_channel(address) as probes:
                told = await refused(probes, CHECK, GARBAGE)
                assert told == ("INVALID_ARGUMENT", "the message cannot be decoded")

    run(test)
    names = [method.rpartition("/")[2] for method in methods]
    assert lines(caplog) == [(n, "INVALID_ARGUMENT", "MALFORMED") for n in (*names, "Check")]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_message_that_is_too_large_is_told_and_counted_as_what_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "quire.service")

    async def test() -> None:
        async with serving() as running:
            for name in ("Generate", "Stats"):
                code, _ = await refused(running.channel, OWN + name, bytes(5 << 20))
                assert code == "RESOURCE_EXHAUSTED"
            ledger = running.server.ledger
            stats = await running.until(lambda s: bool(s.requests.refused))
            assert stats.requests.refused == {"RESOURCE_EXHAUSTED": 1}
            assert ledger.refusals == {"MESSAGE_TOO_LARGE": 1}
            assert ledger.rpcs["Generate", "RESOURCE_EXHAUSTED"] == 1
            assert ledger.rpcs["Stats", "RESOURCE_EXHAUSTED"] == 1

    run(test)
    assert lines(caplog) == [
        (name, "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE") for name in ("Generate", "Stats")
    ]


def test_what_grpc_logs_at_its_lowest_level_stays_unwritten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with serving() as running:
            await refused(running.channel, f"{OWN}Stats", bytes(5 << 20))
            await running.stats()

    run(test)
    assert not [record for record in caplog.records if record.name == GRPC]

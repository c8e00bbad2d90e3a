"""One line of the log a call, refused ones too."""

import json
import logging
from pathlib import Path

import grpc
import pytest
from support.harness import ask, generate, run, serving

from quire.service.security.auth import make_entry
from quire.service.telemetry.logs import JsonFormatter
from quire.v1 import inference_pb2 as pb


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """The fields of each access line."""
    kept = ("request refused", "request ended")
    return [r.__dict__["fields"] for r in caplog.records if r.getMessage() in kept]


def test_a_refusal_for_a_limit_or_a_field_has_its_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quire.service")

    async def test() -> None:
        async with serving(rate_limit_requests=1e-4, rate_limit_burst_seconds=1e4) as running:
            await generate(running, ask([300], max_tokens=1))
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with serving() as running:
            await generate(running, ask([300], temperature=-1.0))
            await generate(running, pb.GenerateRequest(model="another"))
        async with serving(load=False) as running:
            await generate(running, ask([300]))
            with pytest.raises(grpc.aio.AioRpcError):
                await running.stats()

    run(test)
    ended, *refused = lines(caplog)
    assert "finish" in ended
    assert [(line["method"], line["reason"]) for line in refused] == [
        ("Generate", "RATE_LIMITED"),
        ("Generate", "INVALID_FIELD"),
        ("Generate", "UNKNOWN_MODEL"),
        ("Generate", "LOADING"),
        ("Stats", "LOADING"),
    ]
    assert all(line["client"] == "ipv4:127.0.0.1" and line["code"] for line in refused)
    entries = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    told = [entry for entry in entries if entry["message"] == "request refused"]
    assert [entry["reason"] for entry in told] == [line["reason"] for line in refused]
    assert all(entry["details"] for entry in told)


def test_a_missing_key_has_its_line_and_a_known_one_its_name(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "quire.service")
    keys = tmp_path / "keys"
    keys.write_text(make_entry("alice", "a-key-that-is-long-enough") + "\n")

    async def test() -> None:
        async with serving(api_keys=str(keys)) as running:
            await generate(running, ask([300]))
            header = [("authorization", "Bearer a-key-that-is-long-enough")]
            await generate(running, ask([300], temperature=-1.0), metadata=header)

    run(test)
    stranger, alice = lines(caplog)
    assert (stranger["client"], stranger["reason"]) == ("ipv4:127.0.0.1", "UNAUTHENTICATED")
    assert (alice["client"], alice["reason"]) == ("key:alice", "INVALID_FIELD")

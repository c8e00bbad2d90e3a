"""What Stats tells of steps and of open requests, and to whom."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.harness import Running, ask, first, generate, run, serving

from quire.service.rpc import open_requests
from quire.service.security.keys import make_entry
from quire.v1 import inference_pb2 as pb

OWNER, GUEST = "the-operators-own-long-key", "a-guests-own-long-key-1234"


def _bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def _forever(**fields: Any) -> pb.GenerateRequest:
    return ask([300] * 40, max_tokens=2000, ignore_eos=True, **fields)


def test_an_operator_sees_open_requests_and_nothing_of_their_texts(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{make_entry('owner', OWNER)} operator\n{make_entry('guest', GUEST)}\n")

    async def test() -> None:
        async with serving(api_keys=str(keys)) as running:
            asked = pb.StatsRequest(include_requests=True)
            await generate(running, ask([300] * 40, max_tokens=1), metadata=_bearer(GUEST))
            running.device.hold()  # or it may end while it is looked at
            call = running.stub.Generate(_forever(request_id="mine"), metadata=_bearer(GUEST))
            await first(call)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.stub.Stats(asked, metadata=_bearer(GUEST))
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            told = await running.stub.Stats(asked, metadata=_bearer(OWNER))
            (row,) = told.open_requests
            assert (row.request_id, row.started, row.n) == ("mine", True, 1)
            assert row.client.endswith("guest")
            assert (row.prompt_tokens, row.cached_tokens) == (40, 39)
            assert row.open_seconds > 0
            plain = await running.stub.Stats(pb.StatsRequest(), metadata=_bearer(OWNER))
            assert not plain.open_requests
            call.cancel()
            await _open(running, [], metadata=_bearer(OWNER))

    run(test)


async def _open(running: Running, names: list[str], **options: Any) -> None:
    """Asks until these are open: how a call ends is heard a little later."""
    asked = pb.StatsRequest(include_requests=True)
    while True:
        told = await running.stub.Stats(asked, **options)
        if [row.request_id for row in told.open_requests] == names:
            return
        await asyncio.sleep(0.005)


def test_no_more_rows_are_told_than_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_requests, "MAX_LISTED", 2)

    async def test() -> None:
        async with serving() as running:
            running.device.hold()
            calls = []
            for name in ("a", "b", "c"):
                calls.append(running.stub.Generate(_forever(request_id=name)))
                await calls[-1].initial_metadata()
            told = await running.stats(include_requests=True)
            assert [row.request_id for row in told.open_requests] == ["a", "b"]
            calls[0].cancel()
            await _open(running, ["b", "c"])

    run(test)


def test_steps_are_told_by_what_they_held() -> None:
    def counts(stats: pb.StatsResponse) -> dict[str, int]:
        return {kind: sum(h.counts) for kind, h in stats.steps.duration_seconds.items()}

    async def test() -> None:
        async with serving() as running:
            await generate(running, ask([300] * 40, max_tokens=5, ignore_eos=True))
            told = await running.until(lambda s: sum(counts(s).values()) == s.steps.total)
            found = counts(told)
            assert found["prefill"] == 1 and found["mixed"] == 0 and found["decode"] >= 4
            assert told.steps.duration_seconds["decode"].sum > 0

    run(test)

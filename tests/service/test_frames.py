"""A refused request is gone once it is told: none of its frames waits to be found as garbage."""

import asyncio
import contextlib
import gc
import types
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import http1
from support.harness import Running, ask, generate, run, serving

from quire.service.openai.request_reader import INLINE_BYTES
from quire.service.text.workers import PromptWorkers
from quire.v1 import inference_pb2 as pb

LARGE = INLINE_BYTES + 1
SCHEMA = {"json_schema": '{"type": "' + "x" * LARGE}
TOOL = {"name": "f", "parameters": {"$ref": "#"}, "strict": True}
BODIES: dict[str, Any] = {
    "not JSON": b"[" * LARGE,
    "unknown fields": {f"f{i}": i for i in range(LARGE // 8)},
    "a field": {"temperature": -1},
    "a schema": {"structured_outputs": {"json": SCHEMA["json_schema"]}},
    "a tool": {
        "tools": [{"type": "function", "function": TOOL}],
        "tool_choice": "required",
    },
}
REQUESTS = {
    "a field": ask([5], temperature=-1.0),
    "an id": ask([1 << 31], max_tokens=4),
    "a schema": ask([5], constraint=pb.Constraint(**SCHEMA)),
}


@contextlib.contextmanager
def frames() -> Iterator[list[str]]:
    """Those of the service that are garbage at the end, by their functions' names."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        for one in gc.garbage:
            if isinstance(one, types.FrameType) and "service" in Path(one.f_code.co_filename).parts:
                found.append(one.f_code.co_qualname)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_of_refused_requests() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            for name, given in BODIES.items():
                data = http1.posted(
                    http1.CHAT, given if isinstance(given, bytes) else http1.HELLO | given
                )
                assert await left_by(lambda: over_http(running, data)) == [], name  # noqa: B023
            for name, request in REQUESTS.items():
                assert await left_by(lambda: over_grpc(running, request)) == [], name  # noqa: B023
            assert await left_by(lambda: with_one_answer(running)) == []

    run(test)


def test_of_work_that_fails_when_nobody_waits_any_more() -> None:
    async def test() -> None:
        workers = PromptWorkers()

        async def dropped() -> None:
            began = asyncio.Event()
            loop = asyncio.get_running_loop()

            def fail(wanted: Callable[[], bool]) -> None:
                loop.call_soon_threadsafe(began.set)
                while wanted():
                    pass
                raise ValueError

            call = asyncio.ensure_future(workers.run(fail))
            await began.wait()
            call.cancel()
            await asyncio.wait({call})
            assert await workers.run(lambda _: 1) == 1

        assert await left_by(dropped) == []
        workers.close()

    run(test)


async def left_by(refused: Callable[[], Awaitable[None]]) -> list[str]:
    await refused()  # what is made once is made
    with frames() as found:
        await refused()
        await asyncio.sleep(0)
    return found


async def over_http(running: Running, data: bytes) -> None:
    told = await http1.ask(running.server.http_port, data)
    assert told.status == 400, told.body


async def over_grpc(running: Running, request: pb.GenerateRequest) -> None:
    answer = await generate(running, request)
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT


async def with_one_answer(running: Running) -> None:
    with pytest.raises(grpc.RpcError):
        await running.stub.Tokenize(pb.TokenizeRequest())

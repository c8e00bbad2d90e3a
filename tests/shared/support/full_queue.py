"""A queue that is full, on a device that holds."""

from typing import Any

import grpc
from support.harness import Answer, Running, first, generate

from quire.v1 import inference_pb2 as pb

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


async def fill(running: Running, request: pb.GenerateRequest) -> tuple[list[Any], Answer]:
    """On a held device with one slot: a call that has it, one that waits, and one refused."""
    runs = running.stub.Generate(request)
    assert (await first(runs)).HasField("started")
    waits = running.stub.Generate(request)
    assert await waits.initial_metadata()
    return [runs, waits], await generate(running, request)

"""Calls that hold something of a server."""

import asyncio
from collections.abc import Callable

import grpc

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)

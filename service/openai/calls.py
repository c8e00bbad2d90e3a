"""The calls of one request: one, or one a prompt.

Invariant: each passes all that a call has to pass and is counted as one; the first that fails ends
the others. Events are taken one at a time, and a call whose event waits to be taken is not asked
for more, so a slow reader gets larger messages, never a longer queue.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, cast

from quire.clients.openai.asked import Asked
from quire.service.errors import Refusal
from quire.service.openai.http_context import HttpContext
from quire.service.openai.problems import translated
from quire.service.rpc.call_admission import Malformed
from quire.service.rpc.servicer import InferenceServicer
from quire.v1 import inference_pb2 as pb

Take = Callable[[pb.GenerateResponse], Awaitable[None]]


class Calls:
    """Of one request."""

    def __init__(
        self, servicer: InferenceServicer, context: HttpContext, asked: Asked | Malformed
    ) -> None:
        """asked: Malformed where the body does not say it."""
        self._servicer = servicer
        self._context = context
        self._asked = asked
        self._name = ""
        if isinstance(asked, Asked) and asked.prompts > 1:
            self._name = asked.requests[0].request_id or secrets.token_hex(16)
            asked.name(self._name)

    @property
    def name(self) -> str:
        """Once a call was accepted."""
        return self._context.request_id and (self._name or self._context.request_id)

    async def run(self, take: Take) -> None:
        """Returns when all have ended. Raises Refusal, in the body's words."""
        if isinstance(self._asked, Malformed):
            await self._run(self._asked, take)
            return
        if self._asked.prompts == 1:
            await self._one(self._asked, 0, take)
            return
        turn = asyncio.Lock()

        async def in_turn(message: pb.GenerateResponse) -> None:
            async with turn:
                await take(message)

        await _together([self._one(self._asked, i, in_turn) for i in range(self._asked.prompts)])

    async def _one(self, asked: Asked, place: int, take: Take) -> None:
        async def placed(message: pb.GenerateResponse) -> None:
            asked.place(message, place, self._name)
            await take(message)

        several = asked.prompts > 1
        try:
            await self._run(asked.requests[place], placed if several else take)
        except Refusal as refusal:
            raise translated(refusal, asked.names(place)) from None

    async def _run(self, request: pb.GenerateRequest | Malformed, take: Take) -> None:
        messages = self._servicer.Generate(request, cast(Any, self._context))
        async with contextlib.aclosing(messages):
            async for message in messages:
                await take(message)


async def _together(calls: list[Any]) -> None:
    """Raises what the first to fail raises, when all have ended. Each is a task, which is what
    the servicer cancels of a call whose client does not read."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""The calls of one HTTP request: one, or one per prompt.

Invariant: each passes all checks of a call and is counted as one; the first that fails ends the
others. Events are taken one at a time, and a call whose event waits is not asked for more, so a
slow reader gets larger messages, never a longer queue.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, cast

from quire.clients.openai.parsed_body import ParsedBody
from quire.service.errors import Refusal
from quire.service.openai.http_context import HttpContext
from quire.service.openai.problems import translated
from quire.service.rpc.call_admission import Malformed
from quire.service.rpc.servicer import InferenceServicer
from quire.v1 import inference_pb2 as pb

Take = Callable[[pb.GenerateResponse], Awaitable[None]]


class Calls:
    """The calls of one request."""

    def __init__(
        self, servicer: InferenceServicer, context: HttpContext, parsed: ParsedBody | Malformed
    ) -> None:
        """parsed: Malformed if the body could not be read."""
        self._servicer = servicer
        self._context = context
        self._parsed = parsed
        self._name = ""
        if isinstance(parsed, ParsedBody) and parsed.prompts > 1:
            self._name = parsed.requests[0].request_id or secrets.token_hex(16)
            parsed.name(self._name)

    @property
    def name(self) -> str:
        """Once a call was accepted."""
        return self._context.request_id and (self._name or self._context.request_id)

    async def run(self, take: Take) -> None:
        """Returns when all have ended. Raises Refusal, in the body's words."""
        if isinstance(self._parsed, Malformed):
            await self._run(self._parsed, take)
            return
        if self._parsed.prompts == 1:
            await self._one(self._parsed, 0, take)
            return
        turn = asyncio.Lock()

        async def in_turn(message: pb.GenerateResponse) -> None:
            async with turn:
                await take(message)

        await _together([self._one(self._parsed, i, in_turn) for i in range(self._parsed.prompts)])

    async def _one(self, parsed: ParsedBody, place: int, take: Take) -> None:
        async def placed(message: pb.GenerateResponse) -> None:
            parsed.place(message, place, self._name)
            await take(message)

        several = parsed.prompts > 1
        try:
            await self._run(parsed.requests[place], placed if several else take)
        except Refusal as refusal:
            raise translated(refusal, parsed.names(place)) from None

    async def _run(self, request: pb.GenerateRequest | Malformed, take: Take) -> None:
        messages = self._servicer.Generate(request, cast(Any, self._context))
        async with contextlib.aclosing(messages):
            async for message in messages:
                await take(message)


async def _together(calls: list[Any]) -> None:
    """Run all; when all have ended, raise the error of the first that failed. Each is a task, which
    the servicer cancels if the client does not read."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

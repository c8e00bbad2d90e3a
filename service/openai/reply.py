"""One generating request, from its acceptance to the last byte of its answer.

Invariant: an answer that was begun ends as its API has it, or with an error event; one that was not
begun is an HTTP status. A client that disconnects cancels the call at once, whatever is being
awaited, and so frees what it holds. If a call is ended while its client does not read, the
connection is closed, since nothing more can be sent.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import chain
from typing import Any

from starlette.types import Receive, Scope, Send

from quire.clients.openai.parsed_body import ParsedBody
from quire.service.errors import Refusal
from quire.service.openai.api import Api
from quire.service.openai.calls import Calls
from quire.service.openai.http_context import HttpContext
from quire.service.openai.logprob_budget import LogprobBudget
from quire.service.openai.problems import problem
from quire.service.rpc.call_admission import Malformed
from quire.service.rpc.servicer import InferenceServicer
from quire.v1 import inference_pb2 as pb

_JSON = (b"content-type", b"application/json")
_STREAM = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))
_MANY = 4096  # entries of log-probabilities that are better written on another thread
Headers = list[tuple[bytes, bytes]]


class Reply:
    """An ASGI application that answers one request."""

    def __init__(
        self,
        servicer: InferenceServicer,
        context: HttpContext,
        parsed: ParsedBody | Malformed,
        *,
        api: Api,
        model: str,
        budget: LogprobBudget,
    ) -> None:
        """parsed: by the API; Malformed if the body could not be read."""
        self._calls = Calls(servicer, context, parsed)
        self._parsed = parsed
        self._api = api
        self._model = model
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        disconnect = DisconnectWatcher(receive)
        try:
            async with disconnect.watched():
                await self._answer(send, disconnect)
        except asyncio.CancelledError:
            if not disconnect.gone:
                scope["connection"].abort()

    async def _answer(self, send: Send, disconnect: "DisconnectWatcher") -> None:
        try:
            if isinstance(self._parsed, Malformed):
                await self._calls.run(_never)
            elif self._parsed.stream:
                await self._stream(self._parsed, send, disconnect)
            else:
                await self._whole(self._parsed, send, disconnect)
        except Refusal as refusal:
            await self._refuse(refusal, send, disconnect)

    async def _whole(self, parsed: ParsedBody, send: Send, disconnect: "DisconnectWatcher") -> None:
        answer = self._api.whole(self._model, parsed)
        with self._budget.share() as share:

            async def take(message: pb.GenerateResponse) -> None:
                share.take(_entries(message))
                answer.take(message)

            await self._calls.run(take)
            if share.held < _MANY:
                body = answer.encoded()
            else:
                body = await asyncio.to_thread(answer.encoded)
        disconnect.over = True
        await send_whole(send, 200, [_JSON, *self._named()], body)

    async def _stream(
        self, parsed: ParsedBody, send: Send, disconnect: "DisconnectWatcher"
    ) -> None:
        begun, stream = False, self._api.stream(self._model, parsed)

        async def take(message: pb.GenerateResponse) -> None:
            nonlocal begun
            data = stream.encoded(message)
            if not begun:
                begun = True
                headers = [*_STREAM, *self._named()]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            if data:
                await _send_part(send, data, more=True)

        try:
            await self._calls.run(take)
            last = stream.ended()
        except Refusal as refusal:
            if not begun:
                raise
            last = stream.failed(problem(refusal, self._api.error).told["error"])
        disconnect.over = True
        await _send_part(send, last, more=False)

    async def _refuse(self, refusal: Refusal, send: Send, disconnect: "DisconnectWatcher") -> None:
        told = problem(refusal, self._api.error)
        headers = [_JSON, *((k.encode(), v.encode()) for k, v in told.headers.items())]
        disconnect.over = True
        await send_whole(send, told.status, [*headers, *self._named()], told.body)

    def _named(self) -> Headers:
        name = self._calls.name
        return [(header, name.encode()) for header in self._api.id_headers] if name else []


async def _never(_message: pb.GenerateResponse) -> None:
    raise AssertionError("what is no request has no events")


def _entries(message: pb.GenerateResponse) -> int:
    """Log-probabilities, those of the best others included."""
    told = message.delta.logprobs, message.prompt_logprobs.logprobs
    return sum(1 + len(one.top) for one in chain(*told))


class DisconnectWatcher:
    """Notices that the client has gone, and cancels the task that answers it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.gone = False
        self.over = False  # the end is being written: a disconnect no longer matters

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """While this is open."""
        task = asyncio.current_task()
        assert task is not None
        watching = asyncio.create_task(self._watch(task))
        try:
            yield
        finally:
            self.over = True
            watching.cancel()

    async def _watch(self, task: "asyncio.Task[Any]") -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.over:
            self.gone = True
            task.cancel()


async def send_whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """An answer at once."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await _send_part(send, body, more=False)


async def _send_part(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})

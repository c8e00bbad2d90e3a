"""The asyncio client: the same as the synchronous one, in another colour.

Invariant: as there, the call does not outlive the loop over it. grpc.aio does not cancel a call
whose iteration is left, so the iterator does: when the loop is left nothing but the loop holds it,
and its end cancels the call. A cancelled task cancels the call as well.

    async with AsyncClient("127.0.0.1:50051") as client:
        async for event in client.generate("Once upon a time"):
            ...
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Self, Unpack, cast
from weakref import WeakSet

import grpc.aio

from quire.clients.arguments import flag, instance, seconds, text
from quire.clients.connection import DEFAULT_ADDRESS, TLS, Connection
from quire.clients.errors import ClientError, cancelled, from_rpc_error
from quire.clients.events import Collector, Completion, Event, Resumed, from_proto, text_of
from quire.clients.messages import Turn
from quire.clients.prompts import (
    ChatOptions,
    Options,
    Prompt,
    build_detokenize,
    build_request,
    build_tokenize,
    refuse_ids_only,
)
from quire.clients.replicas import unary_loop
from quire.clients.replicas.async_stream_loop import OnlyMessages, StreamIterator, task_is_cancelled
from quire.clients.replicas.call_failover import Attempt, CallFailover
from quire.clients.replicas.channels import ChannelPool
from quire.clients.replicas.policy import ReplicaPolicy
from quire.clients.replicas.shared_state import SharedState, shared_state
from quire.clients.replicas.stream_failover import Item, StreamFailover
from quire.clients.retry import RetryPolicy, RetryState, as_policy
from quire.clients.vectors import (
    EmbedOptions,
    ScoreOptions,
    Text,
    build_embed,
    build_score,
    embeddings_of,
)
from quire.v1 import inference_pb2 as pb


class _Stream:
    """The call of the moment: shared by a generation and the iterator over it."""

    def __init__(self) -> None:
        self.call: Any = None
        self.cancelled = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def hold(self, call: Any) -> None:
        self.call = call
        self._loop = asyncio.get_running_loop()
        if self.cancelled:
            call.cancel()

    def cancel(self) -> None:
        """Idempotent, and callable from a finalizer in any thread."""
        self.cancelled = True
        call, loop = self.call, self._loop
        if call is None or loop is None:
            return
        with suppress(RuntimeError):  # no loop runs here
            if asyncio.get_running_loop() is loop:
                call.cancel()
                return
        with suppress(RuntimeError):  # it is closed, and the call has ended with it
            loop.call_soon_threadsafe(call.cancel)


class _Messages:
    """The iterator of one `async for`. However it ends, the call is cancelled."""

    def __init__(
        self, client: "AsyncClient", request: pb.GenerateRequest, stream: _Stream, tries: RetryState
    ) -> None:
        self._client = client
        self._request = request
        self._stream = stream
        self._tries = tries
        self._received = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb.GenerateResponse:
        response = await self._next_message()
        if response is None:
            raise StopAsyncIteration
        return response

    async def _next_message(self) -> pb.GenerateResponse | None:
        while True:
            if self._stream.call is None:
                self._stream.hold(self._client._open(self._request, self._tries.begin()))
            try:
                response = await self._stream.call.read()
            except grpc.RpcError as raw:
                await self._wait_or_raise(raw)
                continue
            except asyncio.CancelledError:
                self._stream.cancel()
                if task_is_cancelled():
                    raise
                raise cancelled() from None
            if response is grpc.aio.EOF:
                return None
            self._received = True
            return cast(pb.GenerateResponse, response)

    async def _wait_or_raise(self, raw: grpc.RpcError) -> None:
        error = from_rpc_error(raw)
        wait = None if self._received or self._stream.cancelled else self._tries.wait_after(error)
        if wait is None:
            raise error from None
        self._stream.call = None
        await asyncio.sleep(wait)

    def __del__(self) -> None:
        self._stream.cancel()


class _Events:
    """The iterator of events. It alone holds the items: with it ends the call."""

    def __init__(self, items: AsyncIterator[Item]) -> None:
        self._items = items

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            item = await anext(self._items)
            event = item if isinstance(item, Resumed) else from_proto(item)
            if event is not None:
                return event


class _Texts:
    """The iterator of text alone. It alone holds the events: with it ends the call."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while True:
            piece = text_of(await anext(self._events))
            if piece:
                return piece


class AsyncGeneration:
    """One request's stream. Iterate it once; nothing is sent before."""

    def __init__(self, client: "AsyncClient", request: pb.GenerateRequest, timeout: float | None):
        self._client = client
        self._request = request
        self._timeout = timeout
        self._stream = _Stream()
        client._streams.add(self._stream)
        self._used = False

    def __aiter__(self) -> AsyncIterator[Event]:
        return _Events(cast(Any, self._open()))

    def messages(self) -> AsyncIterator[pb.GenerateResponse]:
        """The same stream as the contract's messages; it can be read only once, too."""
        items = self._open()
        return OnlyMessages(items) if isinstance(items, StreamIterator) else items

    def _open(self) -> "_Messages | StreamIterator":
        if self._used:
            raise ClientError("a generation can be iterated once; call generate() again")
        self._used = True
        client = self._client
        if client._replicas is not None:
            failover = StreamFailover(client._replicas, self._request, self._timeout)
            return StreamIterator(failover, client._open_attempt, self._stream)
        tries = RetryState(client.retry, self._timeout)
        return _Messages(client, self._request, self._stream, tries)

    async def completions(self) -> list[Completion]:
        """Runs to the end; one Completion for each index."""
        collector = Collector()
        async for event in self:
            collector.add(event)
        return collector.completions()

    async def text(self) -> str:
        """Runs to the end; the text of index 0."""
        return "".join([piece async for piece in self.text_stream()])

    def text_stream(self) -> AsyncIterator[str]:
        """The text of index 0 as it comes, piece by piece; see Generation.text_stream."""
        refuse_ids_only(self._request)
        return _Texts(aiter(self))

    def cancel(self) -> None:
        """Cancels the call, if it still runs."""
        self._stream.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


class AsyncClient:
    """Like Client, for asyncio. It belongs to the event loop in which it is created."""

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        tls: TLS | bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        replicas: ReplicaPolicy | None = None,
    ) -> None:
        self.connection = Connection(address, api_key=api_key, tls=tls)
        self.retry = as_policy(retry)
        self._timeout = seconds("timeout", timeout)
        self._replicas = shared_state(self.connection, replicas, self.retry)
        only = self.connection.aio_channels()[0] if self._replicas is None else None
        self._channels: ChannelPool[grpc.aio.Channel] = ChannelPool(
            self.connection, Connection.aio_channel_with, only
        )
        self._closing: set[asyncio.Task[None]] = set()
        self._streams: WeakSet[_Stream] = WeakSet()  # grpc 1.82 ends only those that are awaited

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncGeneration:
        """A stream of events for text, token ids, or messages; see Client.generate."""
        return AsyncGeneration(self, build_request(prompt, options), self._seconds(timeout))

    def send(self, request: pb.GenerateRequest, *, timeout: float | None = None) -> AsyncGeneration:
        """Like `generate`, for a message of the contract, used as it is."""
        instance("request", request, pb.GenerateRequest, "a GenerateRequest")
        return AsyncGeneration(self, request, self._seconds(timeout))

    async def stats(
        self,
        *,
        include_block_map: bool = False,
        include_requests: bool = False,
        timeout: float | None = None,
    ) -> pb.StatsResponse:
        """The server's state, as the contract's message. Both options ask an operator's key, where
        there are keys; without one counters are unset (`requests` too)."""
        request = pb.StatsRequest(
            include_block_map=flag("include_block_map", include_block_map),
            include_requests=flag("include_requests", include_requests),
        )
        return cast(pb.StatsResponse, await self._unary(lambda to: to.stub.Stats, request, timeout))

    async def model_info(self, *, timeout: float | None = None) -> pb.GetModelInfoResponse:
        """The served model, as the contract's message."""
        request = pb.GetModelInfoRequest()
        answer = await self._unary(lambda to: to.stub.GetModelInfo, request, timeout)
        return cast(pb.GetModelInfoResponse, answer)

    async def tokenize(
        self,
        prompt: str | Sequence[Turn],
        *,
        timeout: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[int]:
        """The ids of a text or of messages, as generate would compute them."""
        request = build_tokenize(prompt, options)
        answer = await self._unary(lambda to: to.stub.Tokenize, request, timeout)
        return list(answer.token_ids)

    async def detokenize(self, token_ids: Sequence[int], *, timeout: float | None = None) -> str:
        """The text of ids; special tokens have none. Bytes that are no characters read U+FFFD."""
        request = build_detokenize(token_ids)
        return str((await self._unary(lambda to: to.stub.Detokenize, request, timeout)).text)

    async def embed(
        self,
        texts: Sequence[Text],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> list[list[float]]:
        """An embedding of each text (or list of token ids), of length 1."""
        request = build_embed(texts, options)
        return embeddings_of(await self._unary(lambda to: to.stub.Embed, request, timeout))

    async def score(
        self,
        query: str,
        documents: Sequence[str],
        *,
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> list[float]:
        """How well each document answers the query, from 0 to 1."""
        request = build_score(query, documents, options)
        return list((await self._unary(lambda to: to.stub.Score, request, timeout)).scores)

    async def flush_cache(self, *, timeout: float | None = None) -> int:
        """Forget the cached prefixes that no request holds; returns how many blocks that were. With
        several servers, flushes the one whose turn it is. Needs an operator's key if the server has
        keys."""
        request = pb.FlushCacheRequest()
        return int((await self._unary(lambda to: to.stub.FlushCache, request, timeout)).blocks)

    async def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """SERVING, NOT_SERVING or UNKNOWN. service: "", quire.v1.InferenceService, or liveness."""
        from grpc_health.v1 import health_pb2

        request = health_pb2.HealthCheckRequest(service=text("service", service))
        response = await self._unary(lambda to: to.health.Check, request, timeout)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    async def _unary(self, method: unary_loop.Method, request: Any, timeout: float | None) -> Any:
        """A unary call; with several servers, to the one whose turn it is."""
        if self._replicas is not None:
            return await self._ask(self._replicas, method, request, self._seconds(timeout))
        metadata = self.connection.metadata
        tries = RetryState(self.retry, self._seconds(timeout))
        while True:
            try:
                return await method(self._channels.only)(
                    request, timeout=tries.begin(), metadata=metadata
                )
            except grpc.RpcError as raw:
                error = from_rpc_error(raw)
            wait = tries.wait_after(error)
            if wait is None:
                raise error
            await asyncio.sleep(wait)

    async def _ask(
        self, shared: SharedState, method: unary_loop.Method, request: Any, timeout: float | None
    ) -> Any:
        """As unary_loop.ask."""
        failover, metadata = CallFailover(shared, timeout), self.connection.metadata
        try:
            while True:
                attempt = failover.begin()
                call = method(self._channels.to(attempt.address))
                try:
                    answer = await call(request, timeout=attempt.seconds, metadata=metadata)
                except grpc.RpcError as raw:
                    error = from_rpc_error(raw)
                else:
                    failover.ended()
                    return answer
                await asyncio.sleep(failover.failed(error, received=False))
        finally:
            failover.leave()

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else seconds("timeout", timeout)

    def _open(self, request: pb.GenerateRequest, timeout: float | None) -> Any:
        metadata = self.connection.metadata
        return self._channels.only.stub.Generate(request, timeout=timeout, metadata=metadata)

    def _open_attempt(self, attempt: Attempt, request: pb.GenerateRequest) -> Any:
        """A call at the replica that was chosen."""
        assert self._replicas is not None
        for channel in self._channels.drop(self._replicas.fleet.take_gone()):
            task = asyncio.ensure_future(channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        stub, metadata = self._channels.to(attempt.address).stub, self.connection.metadata
        return stub.Generate(request, timeout=attempt.seconds, metadata=metadata)

    async def close(self) -> None:
        """Ends every call of this client and its connections."""
        for stream in tuple(self._streams):
            stream.cancel()
        for channel in self._channels.close():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

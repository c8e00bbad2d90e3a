"""The synchronous client.

Invariant: a Generation is one call on the server at most at a time, and the call does not outlive
the loop over it: leaving the loop by any way (end, break, exception, Ctrl-C) cancels it.

    with Client("127.0.0.1:50051") as client:
        for event in client.generate([Message("user", "Why is the sky blue?")]):
            if isinstance(event, Delta):
                print(event.text, end="", flush=True)
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self, Unpack, cast

import grpc

from quire.clients.arguments import flag, instance, seconds, text
from quire.clients.connection import DEFAULT_ADDRESS, TLS, Connection
from quire.clients.errors import CallError, ClientError, from_rpc_error
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
from quire.clients.replicas.call_failover import Attempt
from quire.clients.replicas.channels import ChannelPool, ReplicaChannel
from quire.clients.replicas.policy import ReplicaPolicy
from quire.clients.replicas.shared_state import shared_state
from quire.clients.replicas.stream_failover import StreamFailover
from quire.clients.replicas.stream_loop import read_stream
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


class _Call(Protocol):
    """The part of grpc's streaming call that this module uses."""

    def __next__(self) -> pb.GenerateResponse: ...
    def cancel(self) -> bool: ...


class Generation:
    """One request's stream. Iterate it once; nothing is sent before.

    Raises CallError and its kinds while iterating. `close()`, or leaving a `with`, cancels too.
    """

    def __init__(self, client: "Client", request: pb.GenerateRequest, timeout: float | None):
        self._client = client
        self._request = request
        self._timeout = timeout
        self._call: _Call | None = None
        self._used = False
        self._closed = False

    def __iter__(self) -> Iterator[Event]:
        if self._used:
            raise ClientError("a generation can be iterated once; call generate() again")
        self._used = True
        if self._client._replicas is not None:
            return self._read_on(
                StreamFailover(self._client._replicas, self._request, self._timeout)
            )
        return self._events(RetryState(self._client.retry, self._timeout))

    @property
    def closed(self) -> bool:
        """Whether the stream has been left."""
        return self._closed

    def hold(self, call: _Call) -> None:
        """This is the call now."""
        self._call = call
        if self._closed:  # by another thread, which may have come before the call was held
            call.cancel()

    def _read_on(self, failover: StreamFailover) -> Iterator[Event]:
        """The events of a stream that may go on at another replica."""
        try:
            for item in read_stream(failover, self._client._open_attempt, self):
                event = item if isinstance(item, Resumed) else from_proto(item)
                if event is not None:
                    yield event
        finally:
            self.close()

    def _events(self, tries: RetryState) -> Iterator[Event]:
        received = False
        try:
            while True:
                self.hold(self._client._open(self._request, tries.begin()))
                assert self._call is not None
                try:
                    while True:
                        response = next(self._call)
                        received = True
                        event = from_proto(response)
                        if event is not None:
                            yield event
                except StopIteration:
                    return
                except grpc.RpcError as raw:
                    error = from_rpc_error(raw)
                    wait = None if received or self._closed else tries.wait_after(error)
                    if wait is None:
                        raise error from None
                time.sleep(wait)
        finally:
            self.close()

    def completions(self) -> list[Completion]:
        """Runs to the end; one Completion for each index."""
        collector = Collector()
        for event in self:
            collector.add(event)
        return collector.completions()

    def text(self) -> str:
        """Runs to the end; the text of index 0."""
        return "".join(self.text_stream())

    def text_stream(self) -> Iterator[str]:
        """The text of index 0 as it comes, piece by piece, and nothing else. No piece is empty.

        Iterates the generation, once as well. OptionError where no text is made (ids_only).
        """
        refuse_ids_only(self._request)
        return self._texts(iter(self))

    def _texts(self, events: Iterator[Event]) -> Iterator[str]:
        try:
            yield from filter(None, map(text_of, events))
        finally:
            self.close()

    def close(self) -> None:
        """Cancels the call, if it still runs; from any thread. The loop gets Cancelled."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client:
    """A client of one server, or of several that serve the same.

    Thread-safe; keep one for the life of the program. address: `HOST:PORT` or a list of them.
    api_key: sent as `authorization: Bearer`, over TLS or to loopback only. tls: True for the
    system's authorities, or a TLS. timeout: seconds for each call, unless the call says otherwise.
    replicas: how several are used; given with one address, its name may stand for several.
    """

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
        only = self.connection.channels()[0] if self._replicas is None else None
        self._channels: ChannelPool[grpc.Channel] = ChannelPool(
            self.connection, Connection.channel_with, only
        )

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Generation:
        """A stream of events for text, token ids, or messages.

        Raises OptionError at once for what cannot be sent. timeout: seconds for the whole call,
        retries included.
        """
        return Generation(self, build_request(prompt, options), self._seconds(timeout))

    def send(self, request: pb.GenerateRequest, *, timeout: float | None = None) -> Generation:
        """Like `generate`, for a message of the contract, used as it is."""
        instance("request", request, pb.GenerateRequest, "a GenerateRequest")
        return Generation(self, request, self._seconds(timeout))

    def stats(
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
        return cast(pb.StatsResponse, self._unary(lambda to: to.stub.Stats, request, timeout))

    def model_info(self, *, timeout: float | None = None) -> pb.GetModelInfoResponse:
        """The served model, as the contract's message."""
        request = pb.GetModelInfoRequest()
        answer = self._unary(lambda to: to.stub.GetModelInfo, request, timeout)
        return cast(pb.GetModelInfoResponse, answer)

    def tokenize(
        self,
        prompt: str | Sequence[Turn],
        *,
        timeout: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[int]:
        """The ids of a text or of messages, as generate would compute them."""
        request = build_tokenize(prompt, options)
        return list(self._unary(lambda to: to.stub.Tokenize, request, timeout).token_ids)

    def detokenize(self, token_ids: Sequence[int], *, timeout: float | None = None) -> str:
        """The text of ids; special tokens have none. Bytes that are no characters read U+FFFD."""
        request = build_detokenize(token_ids)
        return str(self._unary(lambda to: to.stub.Detokenize, request, timeout).text)

    def embed(
        self,
        texts: Sequence[Text],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> list[list[float]]:
        """An embedding of each text (or list of token ids), of length 1."""
        request = build_embed(texts, options)
        return embeddings_of(self._unary(lambda to: to.stub.Embed, request, timeout))

    def score(
        self,
        query: str,
        documents: Sequence[str],
        *,
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> list[float]:
        """How well each document answers the query, from 0 to 1."""
        request = build_score(query, documents, options)
        return list(self._unary(lambda to: to.stub.Score, request, timeout).scores)

    def flush_cache(self, *, timeout: float | None = None) -> int:
        """Forget the cached prefixes that no request holds; returns how many blocks that were. With
        several servers, flushes the one whose turn it is. Needs an operator's key if the server has
        keys."""
        request = pb.FlushCacheRequest()
        return int(self._unary(lambda to: to.stub.FlushCache, request, timeout).blocks)

    def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """SERVING, NOT_SERVING or UNKNOWN. service: "", quire.v1.InferenceService, or liveness."""
        from grpc_health.v1 import health_pb2

        request = health_pb2.HealthCheckRequest(service=text("service", service))
        response = self._unary(lambda to: to.health.Check, request, timeout)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def _unary(self, method: unary_loop.Method, request: Any, timeout: float | None) -> Any:
        """A unary call; with several servers, to the one whose turn it is."""
        metadata = self.connection.metadata
        if self._replicas is not None:

            def send(replica: ReplicaChannel[grpc.Channel], attempt: Attempt) -> Any:
                return method(replica)(request, timeout=attempt.seconds, metadata=metadata)

            return unary_loop.ask(self._replicas, self._channels, self._seconds(timeout), send)
        tries = RetryState(self.retry, self._seconds(timeout))
        while True:
            try:
                return method(self._channels.only)(
                    request, timeout=tries.begin(), metadata=metadata
                )
            except grpc.RpcError as raw:
                error = from_rpc_error(raw)
            wait = tries.wait_after(error)
            if wait is None:
                raise error
            time.sleep(wait)

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else seconds("timeout", timeout)

    def _open(self, request: pb.GenerateRequest, timeout: float | None) -> _Call:
        metadata = self.connection.metadata
        return cast(
            _Call, self._channels.only.stub.Generate(request, timeout=timeout, metadata=metadata)
        )

    def _open_attempt(self, attempt: Attempt, request: pb.GenerateRequest) -> _Call:
        """A call at the replica that was chosen."""
        assert self._replicas is not None
        for channel in self._channels.drop(self._replicas.fleet.take_gone()):
            channel.close()
        stub, metadata = self._channels.to(attempt.address).stub, self.connection.metadata
        return cast(_Call, stub.Generate(request, timeout=attempt.seconds, metadata=metadata))

    def close(self) -> None:
        """Ends every call of this client and its connections."""
        for channel in self._channels.close():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def is_serving(client: Client, service: str = "", timeout: float = 1.0) -> bool:
    """Whether the server answers SERVING within the timeout; never raises CallError."""
    instance("client", client, Client, "a Client")
    with suppress(CallError):
        return client.health(service, timeout=timeout) == "SERVING"
    return False

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
from quire.clients.errors import CallError, ClientError, Unavailable, from_rpc_error
from quire.clients.events import Collector, Completion, Event, from_proto, text_of
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
from quire.clients.retry import RetryPolicy, Tries, as_policy
from quire.clients.rotation import Rotation
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc


class _Call(Protocol):
    """What this module uses of grpc's streaming call."""

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
        return self._events(Tries(self._client.retry, self._timeout))

    def _events(self, tries: Tries) -> Iterator[Event]:
        received = False
        try:
            while True:
                server = self._client._rotation.take()
                self._call = self._client._open(server, self._request, tries.begin())
                if self._closed:  # by another thread, which may have come before the call was held
                    self._call.cancel()
                try:
                    while True:
                        response = next(self._call)
                        received = True
                        event = from_proto(response)
                        if event is not None:
                            yield event
                except StopIteration:
                    self._client._rotation.report(server, up=True)
                    return
                except grpc.RpcError as raw:
                    error = from_rpc_error(raw)
                    self._client._rotation.report(server, up=not isinstance(error, Unavailable))
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
    """A client of one server, or of several that serve the same (calls go round).

    Thread-safe; keep one for the life of the program. address: `HOST:PORT` or a list of them.
    api_key: sent as `authorization: Bearer`, over TLS or to loopback only. tls: True for the
    system's authorities, or a TLS. timeout: seconds for each call, unless the call says otherwise.
    """

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        tls: TLS | bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.connection = Connection(address, api_key=api_key, tls=tls)
        self.retry = as_policy(retry)
        self._timeout = seconds("timeout", timeout)
        self._channels = self.connection.channels()
        self._stubs: list[Any] = [pb_grpc.InferenceServiceStub(c) for c in self._channels]
        self._rotation = Rotation(len(self._channels))

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Generation:
        """A stream of events for text, token ids, or messages.

        Raises OptionError at once for what cannot be sent. timeout: seconds for the whole call,
        retries included.
        """
        return Generation(self, build_request(prompt, options), self._seconds(timeout))

    def send(self, request: pb.GenerateRequest, *, timeout: float | None = None) -> Generation:
        """The same for a message of the contract, used as it is."""
        instance("request", request, pb.GenerateRequest, "a GenerateRequest")
        return Generation(self, request, self._seconds(timeout))

    def stats(
        self, *, include_block_map: bool = False, timeout: float | None = None
    ) -> pb.StatsResponse:
        """The server's state, as the contract's message."""
        request = pb.StatsRequest(include_block_map=flag("include_block_map", include_block_map))
        methods = [stub.Stats for stub in self._stubs]
        return cast(pb.StatsResponse, self._unary(methods, request, timeout))

    def model_info(self, *, timeout: float | None = None) -> pb.GetModelInfoResponse:
        """What is served, as the contract's message."""
        methods = [stub.GetModelInfo for stub in self._stubs]
        answer = self._unary(methods, pb.GetModelInfoRequest(), timeout)
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
        methods = [stub.Tokenize for stub in self._stubs]
        return list((self._unary(methods, request, timeout)).token_ids)

    def detokenize(self, token_ids: Sequence[int], *, timeout: float | None = None) -> str:
        """The text of ids; special tokens have none. Bytes that are no characters read U+FFFD."""
        request = build_detokenize(token_ids)
        methods = [stub.Detokenize for stub in self._stubs]
        return str((self._unary(methods, request, timeout)).text)

    def flush_cache(self, *, timeout: float | None = None) -> int:
        """Forget the cached prefixes that no request holds; how many blocks they were. Of the one
        server whose turn it is, and for an operator's key, where there are keys."""
        methods = [stub.FlushCache for stub in self._stubs]
        return int((self._unary(methods, pb.FlushCacheRequest(), timeout)).blocks)

    def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """SERVING, NOT_SERVING or UNKNOWN. service: "", quire.v1.InferenceService, or liveness."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        methods = [health_pb2_grpc.HealthStub(channel).Check for channel in self._channels]
        request = health_pb2.HealthCheckRequest(service=text("service", service))
        response = self._unary(methods, request, timeout)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def _unary(self, methods: Sequence[Any], request: Any, timeout: float | None) -> Any:
        """One method a server; the request goes to the one whose turn it is."""
        tries = Tries(self.retry, self._seconds(timeout))
        while True:
            server = self._rotation.take()
            try:
                left = tries.begin()
                response = methods[server](request, timeout=left, metadata=self.connection.metadata)
            except grpc.RpcError as raw:
                error = from_rpc_error(raw)
            else:
                self._rotation.report(server, up=True)
                return response
            self._rotation.report(server, up=not isinstance(error, Unavailable))
            wait = tries.wait_after(error)
            if wait is None:
                raise error
            time.sleep(wait)

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else seconds("timeout", timeout)

    def _open(self, server: int, request: pb.GenerateRequest, timeout: float | None) -> _Call:
        metadata = self.connection.metadata
        return cast(
            _Call, self._stubs[server].Generate(request, timeout=timeout, metadata=metadata)
        )

    def close(self) -> None:
        """Ends every call of this client and its connections."""
        for channel in self._channels:
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

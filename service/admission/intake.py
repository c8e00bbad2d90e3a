"""Reading of request bodies: bounds the bytes in flight of callers that are not yet known.

gRPC hands a call to the server when its headers have arrived, and reads as much of its body as the
server asks for. Bodies are read in turn: once the call has one of `places`, so callers that have
proved nothing yet hold at most places × the largest message in memory. A call without its key is
refused before its body is read.

Invariant: a place is held for at most BODY_SECONDS and, while others wait, given to them after
GRACE_SECONDS. Connections take turns, those that were slow before come after the others; if too
many calls wait, the connection that has the most of them loses its last. So bodies that never end
cost their senders' own connections their turns, and others a second.

Calls that send several requests (reflection) are limited to a few, and to a short time.
"""

import asyncio
import heapq
import inspect
import itertools
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from quire.service import errors
from quire.service.admission import oversize
from quire.service.admission.counts import Counts, add
from quire.service.errors import Refusal

BODY_SECONDS = 30.0
GRACE_SECONDS = 1.0
MAX_BODY_BYTES = 64 << 20  # of all bodies being read
MAX_WAITING = 8192  # calls that wait for a place
MAX_STREAMING = 16  # calls that send several requests
STREAMING_SECONDS = 60.0
_SLOW_RANK = 1 << 20  # behind any number of calls of a connection that was not slow
_MIN_PLACES = 8
_MAX_SLOW = 1024  # connections that are remembered as slow
_RETRY_SECONDS = 1.0

Context = grpc.aio.ServicerContext[Any, Any]
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]
Check = Callable[[str, Any], Refusal | None]
OnRefused = Callable[[str, Context, Refusal], None]


def places_for(max_message: int) -> int:
    """How many bodies of at most this size, in bytes, are read at once."""
    return max(_MIN_PLACES, MAX_BODY_BYTES // max_message)


class Reading:
    """A body that has a place, or gets it on entering: a context manager of the task that reads.
    When the place is given up, what the task waits for is cancelled, and leaving raises the Refusal
    for it. As asyncio's own timeouts do it, without a timer each."""

    __slots__ = ("_cancelling", "_places", "_task", "connection", "given_up", "since")

    def __init__(self, places: "Places", connection: str) -> None:
        self._places = places
        self.connection = connection
        self.given_up = False

    async def __aenter__(self) -> "Reading":
        """Waits for the place. Raises Refusal if too many wait, or at shutdown."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        if not self._places._take():
            await self._places._turn(self.connection, loop)
        self._task, self._cancelling = task, task.cancelling()
        self.since = loop.time()
        self._places._begin(self, loop)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._places._end(self)
        if self.given_up:
            mine = self._task.uncancel() <= self._cancelling
            if mine and kind is asyncio.CancelledError:
                raise self._places.late(self.connection) from None

    def give_up(self) -> None:
        """Stop waiting for it."""
        if not self.given_up:
            self.given_up = True
            self._task.cancel()


class Places:
    """The bodies that are being read, and those that wait for a place. Used on one event loop, by
    its clock."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._reading: dict[Reading, None] = {}  # the oldest first
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap; some have ended
        self._turns: dict[str, dict[asyncio.Future[None], None]] = {}  # that wait, by connection
        self._held: Counts = {}  # places of each connection
        self._live = 0  # turns that wait
        self._slow: OrderedDict[str, int] = OrderedDict()
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._overdue: asyncio.TimerHandle | None = None  # one for all bodies
        self._closed = False

    @property
    def waiting(self) -> int:
        """Calls without a place."""
        return self._live

    @property
    def reading(self) -> int:
        """Calls with one."""
        return len(self._reading)

    def place(self, connection: str) -> Reading:
        """A place for one body: a context manager that waits for it, see Reading."""
        return Reading(self, connection)

    def _take(self) -> bool:
        """Whether there was a free place. Raises Refusal."""
        if self._closed:
            raise errors.shutting_down()
        if not self._free:
            return False
        self._free -= 1
        return True

    def _begin(self, reading: Reading, loop: asyncio.AbstractEventLoop) -> None:
        self._reading[reading] = None
        add(self._held, reading.connection, 1)
        if self._overdue is None:
            self._overdue = loop.call_later(BODY_SECONDS, self._end_overdue, loop)

    def _end_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give up the bodies whose time is up, and check again when the next one's is."""
        self._overdue = None
        for reading in self._reading:
            left = reading.since + BODY_SECONDS - loop.time()
            if left > 0:
                self._overdue = loop.call_later(left, self._end_overdue, loop)
                return
            reading.give_up()

    def _end(self, reading: Reading) -> None:
        del self._reading[reading]
        add(self._held, reading.connection, -1)
        self._leave()

    async def _turn(self, connection: str, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for a free place. Raises Refusal."""
        if self._live >= MAX_WAITING:
            self._make_room(connection)
        turn: asyncio.Future[None] = loop.create_future()
        turns = self._turns.setdefault(connection, {})
        held = self._held.get(connection, 0)
        rank = self._slow.get(connection, 0) * _SLOW_RANK + len(turns) + held
        turns[turn] = None
        self._live += 1
        heapq.heappush(self._waiting, (rank, next(self._order), turn))
        if len(self._waiting) > 2 * MAX_WAITING:
            self._waiting = [entry for entry in self._waiting if not entry[2].done()]
            heapq.heapify(self._waiting)
        self._look(loop)
        try:
            await turn
            if self._closed:  # since the place was given
                self._leave()
                raise errors.shutting_down()
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave()
            raise
        finally:
            self._live -= 1
            del turns[turn]
            if not turns:
                self._turns.pop(connection, None)

    def _make_room(self, connection: str) -> None:
        """The connection with the most waiting calls loses its last one. Raises Refusal if that is
        the new call's own connection."""
        most = max(self._turns, key=lambda name: len(self._turns[name]))
        refusal = errors.too_many_calls(MAX_WAITING, _RETRY_SECONDS)
        if len(self._turns[most]) <= len(self._turns.get(connection, ())) + 1:
            raise refusal
        last = next((turn for turn in reversed(self._turns[most]) if not turn.done()), None)
        if last is None:
            raise refusal
        last.set_exception(refusal)

    def late(self, connection: str) -> Refusal:
        """The refusal for a body that took too long. A slow connection is served after others from
        now on."""
        if self._closed:
            return errors.shutting_down()
        self._slow[connection] = self._slow.pop(connection, 0) + 1
        if len(self._slow) > _MAX_SLOW:
            self._slow.popitem(last=False)
        return errors.slow_request(_RETRY_SECONDS)

    def close(self) -> None:
        """The server shuts down: refuse all calls whose bodies have not been read."""
        self._closed = True
        for reading in self._reading:
            reading.give_up()
        for turn in itertools.chain.from_iterable(self._turns.values()):
            if not turn.done():
                turn.set_exception(errors.shutting_down())

    def _leave(self) -> None:
        """Give the place to the next waiting call."""
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """While calls wait, take places from those that have held them too long."""
        if self._timer is not None:
            return
        live = self._live
        for reading in itertools.islice(self._reading, live):
            if loop.time() - reading.since >= GRACE_SECONDS:
                reading.give_up()
        if live:
            self._timer = loop.call_later(GRACE_SECONDS / 4, self._look_again, loop)

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        self._look(loop)


class Intake(grpc.aio.ServerInterceptor):
    """Reads the request of each call with a single one, in turn. For any method, bytes that do not
    parse as its message end the call with a status of ours."""

    def __init__(
        self, places: Places, check: Check, on_refused: OnRefused, max_message: int
    ) -> None:
        """check: of a method and its metadata, before the body is read. max_message: bytes that
        gRPC takes in."""
        self._places = places
        self._check = check
        self._on_refused = on_refused
        self._max_message = max_message
        self._streaming = 0
        self._made: dict[str, tuple[Any, Any]] = {}  # by method: its handler, and the one of ours
        oversize.listen()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """A handler with the same answers, which reads the request itself."""
        found = await continuation(handler_call_details)
        if found is None:
            return found
        method = handler_call_details.method
        if found.request_streaming:
            return self._few(found, method) if found.response_streaming else found
        refusal = self._check(method, handler_call_details.invocation_metadata)
        if refusal is not None:
            return self._make(found, method, refusal)
        known, made = self._made.get(method, (None, None))
        if known is not found:  # always where handlers are made for each call anew
            made = self._make(found, method, None)
            self._made[method] = found, made
        return made

    def _make(self, found: Any, method: str, refusal: Refusal | None) -> Any:
        make = _streamed if found.response_streaming else _single

        async def request_of(context: Context) -> Any:
            receipt = oversize.Receipt()
            try:
                if refusal is not None:
                    raise refusal
                return await self._read(context, receipt)
            except Refusal as refused:
                self._on_refused(method, context, refused)
                await errors.abort(context, refused)
            except asyncio.CancelledError:
                if receipt.failed:  # gRPC itself has told the caller
                    too_large = errors.message_too_large(self._max_message)
                    self._on_refused(method, context, too_large)
                raise

        return make(found, request_of)

    def _few(self, found: Any, method: str) -> Any:
        async def answers(requests: Any, context: Context) -> AsyncIterator[Any]:
            if self._streaming >= MAX_STREAMING:
                refusal = errors.too_many_calls(MAX_STREAMING, _RETRY_SECONDS)
                await errors.abort(context, refusal)
            self._streaming += 1
            try:
                async with asyncio.timeout(STREAMING_SECONDS):
                    async for answer in found.stream_stream(requests, context):
                        yield answer
            except TimeoutError:
                await errors.abort(context, errors.slow_request(_RETRY_SECONDS))
            except Refusal as refused:
                self._on_refused(method, context, refused)
                await errors.abort(context, refused)
            finally:
                self._streaming -= 1

        return grpc.stream_stream_rpc_method_handler(
            answers, _decoder(found), found.response_serializer
        )

    async def _read(self, context: Context, receipt: oversize.Receipt) -> Any:
        """In the call's own task: another one for each body would cost as much as all else here."""
        async with self._places.place(context.peer()):
            request = await receipt.read(context.read())
        if request is grpc.aio.EOF:
            if receipt.failed:
                raise asyncio.CancelledError  # which is on its way from gRPC
            raise errors.malformed()
        return request


RequestOf = Callable[[Context], Awaitable[Any]]


def _decoder(found: Any) -> Callable[[bytes], Any]:
    """The handler's own, which raises Refusal where it would raise anything else."""

    def decode(raw: bytes) -> Any:
        try:
            return found.request_deserializer(raw)
        except Exception:
            raise errors.malformed() from None

    return decode


def _streamed(found: Any, request_of: RequestOf) -> Any:
    """It writes its answers: a generator around another costs each call, and each answer, more."""
    yields = _is_generator(found.unary_stream)

    async def answers(_requests: Any, context: Context) -> None:
        try:
            if not yields:
                await found.unary_stream(await request_of(context), context)
                return
            stream = found.unary_stream(await request_of(context), context)
            try:
                async for answer in stream:
                    await context.write(answer)
            finally:
                await stream.aclose()
        except grpc.aio.AbortError as error:
            errors.forget_frames(error)  # gRPC keeps it, and with it the request
            raise

    return grpc.stream_stream_rpc_method_handler(
        answers, _decoder(found), found.response_serializer
    )


def _is_generator(handler: Any) -> bool:
    return inspect.isasyncgenfunction(handler)


def _single(found: Any, request_of: RequestOf) -> Any:
    async def answer(_requests: Any, context: Context) -> Any:
        try:
            return await found.unary_unary(await request_of(context), context)
        except grpc.aio.AbortError as error:
            errors.forget_frames(error)  # gRPC keeps it, and with it the request
            raise

    return grpc.stream_unary_rpc_method_handler(answer, _decoder(found), found.response_serializer)

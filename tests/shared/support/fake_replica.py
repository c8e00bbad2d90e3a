"""A replica for the clients' tests: its tokens are a function of seed and position, as a server's
are, and how each call ends is written beforehand.

Invariant: token `i` of a seed is `token(seed, i)`, and its text `word(...)`, at every replica; a
call that resumes is answered from there on, and ids that are not the stream's own are put down in
`wrong`.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.patience import PATIENCE

from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

LENGTH = 8  # tokens of an answer
SOCKET, DRAIN, QUIET, HELD = "socket", "drain", "quiet", "held"


def token(seed: int, position: int) -> int:
    return (seed * 31 + position * 7) % 251 + 1


def word(token_id: int) -> str:
    return f"t{token_id} "


def whole(seed: int) -> list[int]:
    return [token(seed, i) for i in range(LENGTH)]


@dataclass(frozen=True)
class Break:
    """The call ends after so many tokens of this leg, or before `started` (None).

    how: SOCKET as a lost connection shows; DRAIN as a server that shuts down ends its streams: with
    what it had held back; QUIET: all has come, and only the status is lost; HELD: not before its
    client ends it.
    """

    after: int | None
    how: str = SOCKET


@dataclass
class Replica(pb_grpc.InferenceServiceServicer):
    """Plays `script`, an entry a call; then it answers well. An entry that is a tuple refuses the
    call: (code, message, reason, seconds after which to come again)."""

    fingerprint: str = "one"
    numerics: str = "tp=1 cpu"
    drawn: int = 7
    prompt_tokens: int = 5
    script: list[object] = field(default_factory=list)
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def Generate(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateResponse]:
        self.requests.append(request)
        context.add_callback(lambda: None if context.is_active() else self.cancelled.set())
        planned = self.script.pop(0) if self.script else None
        if isinstance(planned, tuple):
            refuse(context, *planned)
        ends = planned if isinstance(planned, Break) else Break(LENGTH + 1)
        if ends.after is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        yield from self._stream(request, context, ends)

    def _stream(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext, ends: Break
    ) -> Iterator[pb.GenerateResponse]:
        sampling = request.sampling
        seed = sampling.seed if sampling.HasField("seed") else self.drawn
        held = list(request.resume_token_ids)
        if held != whole(seed)[: len(held)]:
            self.wrong.append(f"{held} of {whole(seed)}")
        yield pb.GenerateResponse(
            started=pb.Started(
                request_id=request.request_id or "made-up",
                seed=seed,
                model_fingerprint=self.fingerprint,
                prompt_tokens=self.prompt_tokens,
                cached_tokens=4 if not held else 3,
                numerics=self.numerics,
            )
        )
        assert ends.after is not None
        for index in range(max(sampling.n, 1)):
            for made, position in enumerate(range(len(held), LENGTH)):
                if made == ends.after:
                    yield from self._cut(index, ends, token(seed, position), context)
                yield delta(index, token(seed, position))
            yield finished(index, LENGTH - len(held), pb.FINISH_REASON_STOP, len(held))
        if ends.how == QUIET:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    @staticmethod
    def _cut(
        index: int, ends: Break, next_id: int, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateResponse]:
        if ends.how == DRAIN:
            last = delta(index, next_id)
            last.delta.text, last.delta.closing = "half a character", True
            yield last
            yield finished(index, 99, pb.FINISH_REASON_CANCELLED, 0)
            refuse(context, "UNAVAILABLE", "the server is shutting down", "DRAINING", None)
        ended = threading.Event()
        if ends.how == HELD and context.add_callback(ended.set):
            ended.wait(PATIENCE)
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    def Stats(self, _request: pb.StatsRequest, _context: object) -> pb.StatsResponse:
        return pb.StatsResponse(version=self.fingerprint)


def delta(index: int, token_id: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        delta=pb.Delta(index=index, text=word(token_id), token_ids=[token_id])
    )


def finished(index: int, made: int, reason: "pb.FinishReason", resumed: int) -> pb.GenerateResponse:
    """Of thoughts, one of this leg, and one of the earlier ones."""
    usage = pb.Usage(prompt_tokens=5, completion_tokens=made, cached_tokens=3, reasoning_tokens=1)
    usage.resumed_reasoning_tokens = min(resumed, 1)
    return pb.GenerateResponse(finished=pb.Finished(index=index, reason=reason, usage=usage))


def refuse(
    context: grpc.ServicerContext, code: str, message: str, reason: str, after: float | None
) -> None:
    """With rich details, as the real server does."""
    details: list[object] = [error_details_pb2.ErrorInfo(reason=reason, domain="quire")]
    if after is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(int(after * 1e9))
        details.append(info)
    status = status_pb2.Status(code=grpc.StatusCode[code].value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(grpc.StatusCode[code], message)


class Health(health_pb2_grpc.HealthServicer):
    """Of the whole server. The package's own may block for ever in `set` beside a watcher who
    leaves: it sends to watchers while it holds the lock that their going needs."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._status = health_pb2.HealthCheckResponse.SERVING

    def set(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        with self._changed:
            self._status = status
            self._changed.notify_all()

    def Check(self, _request: object, _context: object) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=self._status)

    def Watch(
        self, _request: object, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        context.add_callback(self._look_again)
        told = None
        while context.is_active():
            with self._changed:
                while self._status == told and context.is_active():
                    self._changed.wait()
                told = self._status
            yield health_pb2.HealthCheckResponse(status=told)

    def _look_again(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Served:
    """A replica on a port of its own, until the `with` ends."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self._server = grpc.server(ThreadPoolExecutor(64))  # each watcher holds a thread
        pb_grpc.add_InferenceServiceServicer_to_server(replica, self._server)
        self.health = Health()
        self.ready(True)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def ready(self, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self.health.set(status.SERVING if ready else status.NOT_SERVING)

    def __enter__(self) -> "Served":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

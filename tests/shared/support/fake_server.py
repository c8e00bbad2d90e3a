"""A small server of the contract, for the clients' tests: no model, every turn under control.

Invariant: what it does with a call is told by the request itself (the text prompt is a script), so
that a test says in one place what it expects.

Scripts, as the text prompt:
    say WORDS          each word a delta, then finished
    call WORDS         thoughts, `so`, and a call of the tool `f` with WORDS, a delta each
    forever            deltas until the call ends
    hang               accepted, started, then nothing until the call ends
    fail CODE MESSAGE  the status at once
    late CODE          started and one delta, then the status
    fail-times N       UNAVAILABLE for the first N calls of this script, then `say ok`
    gather N           nothing until N calls of this script are here at once, then `say ok`
    busy-times N MS    RESOURCE_EXHAUSTED with a pushback of MS, N times, then `say ok`
Token ids and chats are answered with `say` of what was received.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from support.patience import PATIENCE

from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc


@dataclass
class Seen:
    """What the server has seen. `ended` is set when a streaming call has come to its end."""

    requests: list[pb.GenerateRequest] = field(default_factory=list)
    tokenized: list[pb.TokenizeRequest] = field(default_factory=list)
    embedded: list[pb.EmbedRequest] = field(default_factory=list)
    scored: list[pb.ScoreRequest] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    cancelled: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    gathered: threading.Condition = field(default_factory=threading.Condition)
    templates: bool = True  # whether chats are taken
    room: int = 1 << 20  # for tokens to make

    def count(self, verb: str) -> int:
        """One more call of it, on any of the server's threads; how many that makes."""
        with self.gathered:
            self.calls[verb] += 1
            self.gathered.notify_all()
            return self.calls[verb]


def started(request: pb.GenerateRequest) -> pb.GenerateResponse:
    event = pb.Started(
        request_id=request.request_id or "made-up",
        seed=request.sampling.seed or 7,
        model_fingerprint="fake",
        prompt_tokens=5,
        cached_tokens=4,
    )
    return pb.GenerateResponse(started=event)


def delta(index: int, text: str) -> pb.GenerateResponse:
    ids = list(text.encode())[:1]
    logprob = pb.TokenLogprob(
        token_id=ids[0],
        bytes=text.encode(),
        logprob=-0.5,
        rank=1,
        top=[pb.TopLogprob(token_id=1, bytes=b"a", logprob=-0.25)],
    )
    return pb.GenerateResponse(
        delta=pb.Delta(index=index, text=text, token_ids=ids, logprobs=[logprob])
    )


def finished(index: int, count: int) -> pb.GenerateResponse:
    usage = pb.Usage(prompt_tokens=5, completion_tokens=count, cached_tokens=4)
    event = pb.Finished(
        index=index,
        reason=pb.FINISH_REASON_STOP,
        stop_token_id=2,
        usage=usage,
        timings=pb.Timings(queued_seconds=0.25, prefill_seconds=0.5, decode_seconds=1.5),
        peak_blocks=3,
    )
    return pb.GenerateResponse(finished=event)


def called(words: list[str]) -> Iterator[pb.GenerateResponse]:
    """Thoughts, a text and a call, whose arguments come in pieces."""
    first = pb.ToolCallDelta(index=0, id="call_1", name="f")
    pieces = [pb.ToolCallDelta(index=0, arguments_json=w) for w in ('{"w": "', *words, '"}')]
    for fields in (
        {"reasoning": "hm, "},
        {"reasoning": "well"},
        {"text": "so"},
        *({"tool_calls": [piece]} for piece in (first, *pieces)),
    ):
        yield pb.GenerateResponse(delta=pb.Delta(index=0, token_ids=[1], **fields))
    end = finished(0, 4 + len(pieces))
    end.finished.reason = pb.FINISH_REASON_TOOL_CALLS
    end.finished.ClearField("matched")
    end.finished.usage.reasoning_tokens = 2
    yield end


class Servicer(pb_grpc.InferenceServiceServicer):
    """Plays the scripts."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def Generate(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateResponse]:
        self.seen.requests.append(request)
        self.seen.metadata.append(dict(context.invocation_metadata()))
        ended = threading.Event()
        context.add_callback(ended.set)
        context.send_initial_metadata((("quire-request-id", request.request_id or "made-up"),))
        try:
            yield from self._play(request, context, ended)
        finally:
            if not context.is_active() or ended.is_set():
                self.seen.cancelled.set()

    def _play(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext, ended: threading.Event
    ) -> Iterator[pb.GenerateResponse]:
        if not self.seen.templates and request.WhichOneof("prompt") == "chat":
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "chat: no chat template")
        if request.sampling.max_tokens > self.seen.room:
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "sampling.max_tokens: at most 9 fit")
        verb, *rest = script(request)
        came = self.seen.count(verb)
        if verb == "fail":
            refuse(context, grpc.StatusCode[rest[0]], " ".join(rest[1:]))
        if verb == "fail-times" and came <= int(rest[0]):
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        if verb == "busy-times" and came <= int(rest[0]):
            context.set_trailing_metadata((("grpc-retry-pushback-ms", rest[1]),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
        if verb == "gather":
            with self.seen.gathered:
                enough = self.seen.gathered.wait_for(
                    lambda: self.seen.calls[verb] >= int(rest[0]), PATIENCE
                )
            if not enough:
                context.abort(grpc.StatusCode.ABORTED, "nobody else came")
        yield started(request)
        self.seen.started.set()
        if verb == "hang":
            ended.wait(PATIENCE)
            return
        while verb == "forever" and not ended.wait(0.002):
            yield delta(0, "x")
        if verb == "late":
            yield delta(0, "x")
            context.abort(grpc.StatusCode[rest[0]], "late")
        if verb == "call":
            yield from called(rest)
            return
        words = rest if verb == "say" else ["ok"]
        for index in range(request.sampling.n or 1):
            for i, word in enumerate(words):
                yield delta(index, word if i == 0 else " " + word)
            yield finished(index, len(words))

    def GetModelInfo(
        self, _request: pb.GetModelInfoRequest, _context: grpc.ServicerContext
    ) -> pb.GetModelInfoResponse:
        return pb.GetModelInfoResponse(
            model=stats().model, version="0.1.0", has_chat_template=True, eos_token_ids=[2]
        )

    def Tokenize(
        self, request: pb.TokenizeRequest, _context: grpc.ServicerContext
    ) -> pb.TokenizeResponse:
        """Each byte is an id; of a chat, those of all that it says."""
        self.seen.tokenized.append(request)
        words = [message.content for message in request.chat.messages]
        text = " ".join(words) if request.HasField("chat") else request.text
        return pb.TokenizeResponse(token_ids=text.encode(), max_model_len=4096)

    def Detokenize(
        self, request: pb.DetokenizeRequest, _context: grpc.ServicerContext
    ) -> pb.DetokenizeResponse:
        return pb.DetokenizeResponse(text=bytes(request.token_ids).decode("utf-8", "replace"))

    def Embed(self, request: pb.EmbedRequest, _context: grpc.ServicerContext) -> pb.EmbedResponse:
        """Of each input its length, and how many dimensions are wanted."""
        self.seen.embedded.append(request)
        sizes = [len(one.text) or len(one.token_ids.ids) for one in request.inputs]
        rows = [pb.Embedding(values=[size, request.dimensions]) for size in sizes]
        return pb.EmbedResponse(embeddings=rows)

    def Score(self, request: pb.ScoreRequest, _context: grpc.ServicerContext) -> pb.ScoreResponse:
        """Of each document the share of its letters that the query has."""
        self.seen.scored.append(request)
        same = [sum(c in request.query for c in one) / len(one) for one in request.documents]
        return pb.ScoreResponse(scores=same)

    def FlushCache(
        self, _request: pb.FlushCacheRequest, context: grpc.ServicerContext
    ) -> pb.FlushCacheResponse:
        self.seen.metadata.append(dict(context.invocation_metadata()))
        return pb.FlushCacheResponse(blocks=3)

    def Stats(self, request: pb.StatsRequest, context: grpc.ServicerContext) -> pb.StatsResponse:
        self.seen.metadata.append(dict(context.invocation_metadata()))
        self.seen.count("stats")
        return stats(request.include_block_map)


def script(request: pb.GenerateRequest) -> list[str]:
    kind = request.WhichOneof("prompt")
    if kind == "text":
        return request.text.split(" ")
    if kind == "token_ids":
        return ["say", *(str(i) for i in request.token_ids.ids)]
    last = request.chat.messages[-1].content
    known = last.split(" ")[0] in ("say", "call", "forever", "hang", "fail", "late")
    return last.split(" ") if known else ["say", *(m.content for m in request.chat.messages)]


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> None:
    """Ends the call with rich details, as the real server does."""
    field, named, _ = message.partition(": ")
    field = field if named else "top_p"
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
    reason = "CONTEXT_LENGTH_EXCEEDED" if "too long" in message else "BECAUSE"
    details = [
        error_details_pb2.BadRequest(field_violations=[violation]),
        error_details_pb2.ErrorInfo(reason=reason, domain="quire"),
    ]
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


def stats(block_map: bool = False) -> pb.StatsResponse:
    histogram = pb.Histogram(bounds=[0.01, 0.1, 1.0], counts=[1, 8, 1, 0], sum=0.6)
    response = pb.StatsResponse(
        model=pb.ModelInfo(
            name="fake",
            architecture="Qwen3ForCausalLM",
            parameters=1234,
            vocab_size=300,
            max_model_len=4096,
            dtype="float32",
            device="cpu",
        ),
        engine_config={"max_num_seqs": "8"},
        requests=pb.RequestStats(running=1, waiting=2, accepted=30, finished_stop=20),
        cache=pb.CacheStats(
            block_size=16,
            blocks_total=6,
            blocks_free=3,
            blocks_cached=1,
            blocks_in_use=3,
            blocks_shared=1,
            prefix_tokens_queried=200,
            prefix_tokens_hit=50,
            bytes_per_token=1024,
        ),
        tokens=pb.TokenStats(prompt=200, prefill_computed=150, generated=90, delivered=88),
        steps=pb.StepStats(total=40, eager=40),
        time_to_first_token_seconds=histogram,
        inter_token_latency_seconds=histogram,
        queue_time_seconds=histogram,
        memory=pb.DeviceMemory(total_bytes=1 << 30, weights_bytes=1 << 20, kv_cache_bytes=1 << 21),
        uptime_seconds=61.5,
        version="0.1.0",
    )
    response.requests.refused["RESOURCE_EXHAUSTED"] = 3
    if block_map:
        response.cache.block_map = bytes([2, 3, 1, 0, 0, 2])
    return response


class FakeServer:
    """The server on a port of its own, until the `with` ends."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.seen = Seen()
        self._server = grpc.server(ThreadPoolExecutor(32))
        pb_grpc.add_InferenceServiceServicer_to_server(Servicer(self.seen), self._server)
        checks = health.HealthServicer()
        checks.set("", health_pb2.HealthCheckResponse.SERVING)
        checks.set("liveness", health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, self._server)
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> "FakeServer":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

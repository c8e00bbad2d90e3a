"""One client process of the load test: sends its share of the sessions and writes down what came.

Runs as `python -m quire.clients.loadtest.worker`. Speaks JSON lines: reads a job, says `ready`,
reads `start` (a time of the monotonic clock, which all processes of a machine share), says
`progress` now and then, and last `result`. Credentials come in the job, never on the command line.

Invariant: an open loop's requests are sent at their intended starts whatever has come back; what
holds one up (a cap on concurrency, a busy client) counts into its latency. Of several servers the
client library chooses, and goes on elsewhere where one breaks: what that takes counts as well.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import grpc
import grpc.aio

from quire.clients.async_client import AsyncClient, AsyncGeneration
from quire.clients.connection import TLS, Connection
from quire.clients.errors import CallError
from quire.clients.loadtest import record as records
from quire.clients.loadtest import workload
from quire.clients.loadtest.record import ClientLoad, Record
from quire.clients.loadtest.statistics import percentile
from quire.clients.loadtest.workload import Session, Turn
from quire.clients.prompts import build_request
from quire.clients.replicas.policy import PREFIX, ReplicaPolicy
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

_TICK = 0.02


@dataclass(frozen=True, slots=True)
class Job:
    """A worker's share. starts None: a closed loop of `concurrency`; else open, capped by it."""

    address: list[str]
    routing: str | None
    api_key: str | None
    tls: dict[str, Any] | None
    timeout: float | None
    sessions: list[dict[str, Any]]
    starts: list[float] | None
    concurrency: int | None
    warmup: int
    """Sessions numbered below this are not measured."""
    seed: int
    vocab_size: int
    options: dict[str, Any] = field(default_factory=dict)
    """Keywords of `generate`, for every request."""


class Worker:
    """Runs a job on the event loop that it is made in."""

    def __init__(self, job: Job) -> None:
        tls = TLS(**job.tls) if job.tls is not None else False
        connection = Connection(job.address, api_key=job.api_key, tls=tls)
        self._job = job
        self._metadata = connection.metadata
        self._client: AsyncClient | None = None  # if a server must be chosen for each call
        self._channels = []
        if job.routing is not None or len(job.address) > 1:
            policy = ReplicaPolicy(routing=job.routing or PREFIX)
            self._client = AsyncClient(job.address, api_key=job.api_key, tls=tls, replicas=policy)
        else:
            self._channels = connection.aio_channels()
            self._stub: Any = pb_grpc.InferenceServiceStub(self._channels[0])
        self._sessions = [workload.from_plain(s) for s in job.sessions]
        self._prefixes: dict[workload.Segment, list[int]] = {}
        self._requests = {s.number: self._build(s.turns[0], []) for s in self._sessions}
        self._started_at = 0.0
        self._lags: list[float] = []
        self._ended = 0
        self.records: list[Record] = []

    async def run(self, start_at: float) -> ClientLoad:
        """Sends everything; returns when the last stream has ended."""
        self._started_at = start_at
        await asyncio.sleep(max(start_at - time.monotonic(), 0))
        cpu = time.process_time()
        ticker = asyncio.create_task(self._tick())
        await (self._closed_loop() if self._job.starts is None else self._open_loop())
        ticker.cancel()
        load = ClientLoad(
            cpu_seconds=time.process_time() - cpu,
            wall_seconds=self._now(),
            loop_lag=percentile(sorted(self._lags), 99) if self._lags else 0.0,
            send_lag=self._send_lag(),
        )
        for channel in self._channels:
            await channel.close()
        if self._client is not None:
            await self._client.close()
        return load

    def _now(self) -> float:
        return time.monotonic() - self._started_at

    def _send_lag(self) -> float:
        lags = sorted(r.sent - r.intended for r in self.records)
        return percentile(lags, 99) if lags else 0.0

    async def _tick(self) -> None:
        """Measures how late the event loop is; tells of progress."""
        told = 0
        while True:
            before = time.monotonic()
            await asyncio.sleep(_TICK)
            self._lags.append(time.monotonic() - before - _TICK)
            if self._ended > told:
                told = self._ended
                send("progress", done=told)

    async def _closed_loop(self) -> None:
        waiting = iter(self._sessions)

        async def one_after_another() -> None:
            for session in waiting:
                await self._play(session, self._now())

        width = min(self._job.concurrency or 1, max(len(self._sessions), 1))
        await asyncio.gather(*(one_after_another() for _ in range(width)))

    async def _open_loop(self) -> None:
        gate = asyncio.Semaphore(self._job.concurrency or len(self._sessions) or 1)

        async def gated(session: Session, start: float) -> None:
            async with gate:
                await self._play(session, start)

        tasks = []
        for session, start in zip(self._sessions, self._job.starts or [], strict=True):
            while (ahead := start - self._now()) > 0:  # a loop's timers may be early by a tick
                await asyncio.sleep(ahead)
            tasks.append(asyncio.create_task(gated(session, start)))
        await asyncio.gather(*tasks)

    async def _play(self, session: Session, intended: float) -> None:
        history: list[int] = []
        for i, turn in enumerate(session.turns):
            request = self._build(turn, history) if i else self._requests.pop(session.number)
            warmup = session.number < self._job.warmup
            record = Record(session.number, i, warmup, intended)
            self.records.append(record)
            answer = await self._send(request, record)
            if record.status != records.OK:
                return  # what follows would continue a conversation that never was
            history = [*request.token_ids.ids, *answer]
            intended = self._now()

    async def _send(self, request: pb.GenerateRequest, record: Record) -> list[int]:
        answer: list[int] = []
        record.sent = self._now()
        try:
            async for response in self._call(request):
                self._note(response, record, answer)
        except grpc.RpcError as error:
            record.status, record.message = error.code().name, error.details() or ""
        except CallError as error:
            record.status, record.message = error.code.name, error.message
        record.ended = self._now()
        self._ended += 1
        return answer

    def _call(self, request: pb.GenerateRequest) -> Any:
        timeout = self._job.timeout
        if self._client is not None:
            return AsyncGeneration(self._client, request, timeout).messages()
        return self._stub.Generate(request, timeout=timeout, metadata=self._metadata)

    def _note(self, response: pb.GenerateResponse, record: Record, answer: list[int]) -> None:
        kind = response.WhichOneof("event")
        if kind == "delta":
            count = len(response.delta.token_ids)
            if count:
                record.times.append(self._now())
                record.counts.append(count)
                answer.extend(response.delta.token_ids)
        elif kind == "started":
            record.prompt_tokens = response.started.prompt_tokens
            record.cached_tokens = response.started.cached_tokens
        elif kind == "finished":
            record.output_tokens += response.finished.usage.completion_tokens
            record.reason = pb.FinishReason.Name(response.finished.reason)

    def _build(self, turn: Turn, history: list[int]) -> pb.GenerateRequest:
        options = {**self._job.options, "max_tokens": turn.max_tokens}
        if turn.text is not None:
            return build_request(turn.text, options)
        if turn.messages:
            return build_request(turn.messages, options)
        ids = list(history)
        for segment in turn.segments:
            ids += self._ids(segment)
        return build_request(ids, options)

    def _ids(self, segment: workload.Segment) -> list[int]:
        if segment not in self._prefixes:
            drawn = workload.token_ids(segment, self._job.seed, self._job.vocab_size)
            if not segment[0].startswith(("prefix", "group/", "named/")):
                return drawn  # used once
            self._prefixes[segment] = drawn
        return self._prefixes[segment]


def send(kind: str, **values: Any) -> None:
    """A line to the parent."""
    print(json.dumps({"kind": kind, **values}), flush=True)


def receive(lines: Iterable[str]) -> dict[str, Any]:
    """A line from the parent; an end of input ends this process."""
    for line in lines:
        return cast(dict[str, Any], json.loads(line))
    raise SystemExit(1)


def _end_with_parent() -> None:
    """The kernel closes the pipe however the parent ends."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


async def _main() -> None:
    worker = Worker(Job(**receive(sys.stdin)))
    send("ready")
    at = receive(sys.stdin)["at"]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    load = await worker.run(at)
    plain = [records.to_plain(r) for r in worker.records]
    send("result", records=plain, load=asdict(load))


def main() -> None:
    """Runs one job; uvloop where there is one."""
    with suppress(ImportError):
        import uvloop

        uvloop.run(_main())
        return
    asyncio.run(_main())


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()

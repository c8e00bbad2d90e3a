"""Deals a workload out to client processes, starts them together, and gathers their records.

Invariant: no client process outlives `run`, however it ends; each session is dealt to exactly one.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from quire.clients.connection import TLS
from quire.clients.errors import ClientError
from quire.clients.loadtest import record as records
from quire.clients.loadtest import workload
from quire.clients.loadtest.record import ClientLoad, Record
from quire.clients.loadtest.worker import Job
from quire.clients.loadtest.workload import Session

_HEAD_START = 0.3


@dataclass(frozen=True, slots=True)
class Target:
    """The server under test, and how to reach it."""

    address: list[str]
    api_key: str | None = None
    tls: TLS | None = None
    timeout: float | None = None
    vocab_size: int = 0
    routing: str | None = None
    """How one of several servers is chosen; None: as the client library does."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to send and when. starts None: closed loop."""

    sessions: Sequence[Session]
    starts: Sequence[float] | None
    concurrency: int | None
    warmup: int = 0
    processes: int = 1
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Every request's record, in the order of their intended starts, and the clients' load."""

    records: list[Record]
    clients: list[ClientLoad]


class _Process:
    """A worker, its answers read by a thread so that no pipe fills up."""

    def __init__(self, job: Job, heard: Callable[[int], None]) -> None:
        command = [sys.executable, "-m", "quire.clients.loadtest.worker"]
        environment = {**os.environ, "GRPC_VERBOSITY": os.environ.get("GRPC_VERBOSITY", "NONE")}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._heard = heard
        self.ready = threading.Event()
        self.result: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.say(asdict(job))

    def say(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ClientError("a client process of the load test has died") from None

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if message["kind"] == "ready":
                self.ready.set()
            elif message["kind"] == "progress":
                self._heard(message["done"])
            else:
                self.result = message
        self.ready.set()  # also when it has died: then there is no result

    def join(self) -> dict[str, Any]:
        """Waits for the result."""
        while self._thread.is_alive():
            self._thread.join(0.2)  # in slices, so that Ctrl-C is heard on every system
        if self.result is None:
            raise ClientError("a client process of the load test has died without a result")
        return self.result

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def run(target: Target, load: Load, progress: Callable[[int], None] | None = None) -> Outcome:
    """Runs the load to its end. progress: requests ended so far, called from several threads."""
    counts: dict[int, int] = {}

    def heard(place: int) -> Callable[[int], None]:
        def add(done: int) -> None:
            counts[place] = done
            if progress is not None:
                progress(sum(counts.values()))

        return add

    with _processes(_deal(target, load), heard) as workers:
        for worker in workers:
            while not worker.ready.wait(0.2):
                pass
        start_at = time.monotonic() + _HEAD_START
        for worker in workers:
            worker.say({"at": start_at})
        results = [worker.join() for worker in workers]
    found = [records.from_plain(r) for result in results for r in result["records"]]
    found.sort(key=lambda r: (r.intended, r.session, r.turn))
    return Outcome(found, [ClientLoad(**result["load"]) for result in results])


@contextmanager
def _processes(
    jobs: Sequence[Job], heard: Callable[[int], Callable[[int], None]]
) -> Iterator[list[_Process]]:
    workers: list[_Process] = []
    try:
        for place, job in enumerate(jobs):
            workers.append(_Process(job, heard(place)))
        yield workers
    finally:
        for worker in workers:
            worker.end()


def _deal(target: Target, load: Load) -> list[Job]:
    """One job a process: sessions in turn, concurrency split as evenly as it goes."""
    width = load.concurrency
    count = max(1, min(load.processes, len(load.sessions), width or load.processes))
    whole = Job(
        address=target.address,
        routing=target.routing,
        api_key=target.api_key,
        tls=_plain_tls(target.tls),
        timeout=target.timeout,
        sessions=[],
        starts=None,
        concurrency=None,
        warmup=load.warmup,
        seed=load.seed,
        vocab_size=target.vocab_size,
        options=load.options,
    )
    return [
        replace(
            whole,
            sessions=[workload.to_plain(s) for s in load.sessions[place::count]],
            starts=None if load.starts is None else list(load.starts[place::count]),
            concurrency=None if width is None else width // count + (place < width % count),
        )
        for place in range(count)
    ]


def _plain_tls(tls: TLS | None) -> dict[str, Any] | None:
    if tls is None:
        return None
    return {key: str(value) if value is not None else None for key, value in asdict(tls).items()}

"""`quire` as a process: run to its end, or served and always ended."""

import contextlib
import os
import queue
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import psutil
from support import programs
from support.patience import PATIENCE, PATIENT
from support.programs import QUIRE

from quire.v1 import inference_pb2 as pb


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QUIRE_", "HF_"))}
    # Port 8000 may be taken; who wants the OpenAI API names a port.
    return {**kept, "OMP_NUM_THREADS": "1", "QUIRE_HTTP_PORT": "0", **more}


def quire(*words: str, given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return programs.run([QUIRE, *words], given=given, timeout=PATIENCE, env=environment(**more))


class Process:
    """A server of its own."""

    def __init__(self, *words: str, **more: str) -> None:
        self.process = programs.start(
            [QUIRE, "serve", "--port", "0", "--num-blocks", "64", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**{f"QUIRE_{k.upper()}": str(v) for k, v in PATIENT.items()}, **more),
        )
        self.errors: list[str] = []
        self._seen: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read_errors, daemon=True)
        self._thread.start()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line)
            self._seen.put(line)
        self._seen.put(None)

    def address(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving ") and " on " in line, (line, self.errors)
        return line.rsplit(" on ", 1)[1].strip()

    def wait_for(self, words: str) -> str:
        while True:
            try:
                line = self._seen.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"no {words!r} in {self.errors}") from None
            assert line is not None, (self.process.wait(), words, self.errors)
            if words in line:
                return line

    def end(self) -> int:
        code = self.process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        return code


@contextlib.contextmanager
def process(*words: str, **more: str) -> Iterator[Process]:
    running = Process(*words, **more)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def runs(process: psutil.Process, program: str) -> bool:
    """Whether it is this one of the server's programs, forked or afresh (see fork_server)."""
    return process.name() == program or f"quire.service.app.{program}" in process.cmdline()


def long_request() -> pb.GenerateRequest:
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[300, 301]))
    request.sampling.max_tokens = 2000
    request.sampling.ignore_eos = True
    return request


def code_of(call: Any) -> grpc.StatusCode:
    """Of a call, read to its end."""
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            pass
    code: grpc.StatusCode = call.code()
    return code


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("quire: ")
    assert all(word in lines[-1] for word in words), done.stderr
    assert done.stdout == ""

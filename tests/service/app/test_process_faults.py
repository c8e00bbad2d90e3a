"""Faults, signals and hangs of a server in a process of its own."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from support import faulty_server, programs
from support.harness import ask
from support.patience import PATIENCE

from quire.v1 import inference_pb2_grpc as pb_grpc

SERVER, SLOTS = Path(faulty_server.__file__), faulty_server.SLOTS
LONG = {"max_tokens": 1500, "ignore_eos": True}


class Process:
    """A server of its own, with its fault."""

    def __init__(self, *words: str) -> None:
        self.process = programs.start(
            [sys.executable, str(SERVER), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " on " in line, self.end()
        self.address = line.rsplit(" on ", 1)[1].strip()

    def end(self) -> tuple[int, str]:
        """Exit code and what it said on standard error."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


@contextlib.contextmanager
def process(*words: str) -> Iterator[Process]:
    running = Process(*words)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def stream(stub: Any) -> Any:
    return stub.Generate(ask([300, 301], **LONG))


def codes_of(calls: list[Any]) -> set[grpc.StatusCode]:
    codes = set()
    for call in calls:
        with contextlib.suppress(grpc.RpcError):
            for _ in call:
                pass
        codes.add(call.code())
    return codes


PLACES = pytest.mark.parametrize("place", ["thread", "process"])


@PLACES
@pytest.mark.parametrize(
    ("fault", "bounds", "words"),
    [("hangs", ("0.3", "0.3"), "the engine is given up"), ("lost", (), "the engine has died")],
)
def test_a_fault_of_the_device_ends_the_process_for_its_supervisor(
    place: str, fault: str, bounds: tuple[str, ...], words: str
) -> None:
    with (
        process(place, fault, *bounds) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        calls = [stream(pb_grpc.InferenceServiceStub(channel)) for _ in range(8)]
        assert codes_of(calls) == {grpc.StatusCode.UNAVAILABLE}
        code, errors = server.end()
        assert code == 1
        assert words in errors


def test_a_step_that_holds_the_interpreter_ends_the_process_too() -> None:
    with (
        process("thread", "grabs", "0.5", "0.5") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        calls = [stream(pb_grpc.InferenceServiceStub(channel))]
        assert codes_of(calls) == {grpc.StatusCode.UNAVAILABLE}
        code, errors = server.end()
        assert code == -signal.SIGKILL  # by the deadman: nothing in the process could
        assert "in lock_twice" in errors  # all stacks, the step's among them


def test_a_step_that_holds_its_own_interpreter_leaves_the_server_time_for_last_words() -> None:
    with (
        process("process", "grabs", "0.5", "1.0") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = stream(pb_grpc.InferenceServiceStub(channel))
        kinds: list[str | None] = []
        with contextlib.suppress(grpc.RpcError):
            for message in call:
                kinds.append(message.WhichOneof("event"))
        assert kinds[-1] == "finished" and call.code() is grpc.StatusCode.UNAVAILABLE
        code, errors = server.end()
        assert code == 1
        told, stack, end = map(
            errors.index, ("the engine stands here:\n", "in lock_twice\n", "the engine is given up")
        )
        assert told < stack < end  # each on a line of its own: the engine writes past the log


def test_a_step_that_holds_its_own_interpreter_does_not_outlive_the_server() -> None:
    with (
        process("process", "grabs", "0.2", "0") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = stream(pb_grpc.InferenceServiceStub(channel))
        (engine,) = psutil.Process(server.process.pid).children()
        assert server.process.stderr is not None
        assert any("in lock_twice" in line for line in server.process.stderr)
        server.process.kill()
        engine.wait(PATIENCE)
        assert codes_of([call]) == {grpc.StatusCode.UNAVAILABLE}


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (signal.SIGTERM, "process"),
        (signal.SIGINT, "thread"),
        pytest.param(signal.SIGTERM, "thread", marks=pytest.mark.long),
        pytest.param(signal.SIGINT, "process", marks=pytest.mark.long),
    ],
)
def test_a_signal_in_full_load_gives_every_stream_its_end(
    number: signal.Signals, place: str
) -> None:
    with process(place, "none") as server, grpc.insecure_channel(server.address) as channel:
        calls = [stream(pb_grpc.InferenceServiceStub(channel)) for _ in range(SLOTS + 20)]
        for call in calls[: SLOTS - 20]:
            assert next(call).HasField("started")
        server.process.send_signal(number)
        codes = codes_of(calls)
        assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK}
        code, errors = server.end()
        assert code == 0, errors
        assert "Traceback" not in errors


@PLACES
def test_a_signal_while_calls_wait_for_their_first_look_gives_each_a_word(place: str) -> None:
    with process(place, "none") as server, grpc.insecure_channel(server.address) as channel:
        calls = [stream(pb_grpc.InferenceServiceStub(channel)) for _ in range(1200)]
        assert next(calls[0]).HasField("started")
        server.process.send_signal(signal.SIGTERM)
        assert codes_of(calls) == {grpc.StatusCode.UNAVAILABLE}
        assert server.end()[0] == 0


@PLACES
def test_a_signal_while_a_step_hangs_is_obeyed_and_tells_the_supervisor(place: str) -> None:
    with process(place, "hangs") as server, grpc.insecure_channel(server.address) as channel:
        call = stream(pb_grpc.InferenceServiceStub(channel))
        assert next(call).HasField("started")
        server.process.send_signal(signal.SIGTERM)
        assert codes_of([call]) == {grpc.StatusCode.UNAVAILABLE}
        code, errors = server.end()
        assert code == 1
        assert "did not end its step" in errors

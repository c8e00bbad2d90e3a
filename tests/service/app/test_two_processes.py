"""`quire serve` with its engine in a process of its own: whatever ends one of the two, and how."""

import contextlib
import gc
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.fork_server import FRESH
from support.patience import PATIENCE
from support.server_process import (
    Process,
    code_of,
    long_request,
    process,
    quire,
    refused,
    runs,
)

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.runner.compile_orders import DECIDING
from quire.service.app import placement
from quire.service.settings import ServiceConfig, Settings
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

APART = ("--engine-process", "on", "--model", "random:tiny", "--device", "cpu")
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Apart:
    """A server with its engine apart, ready, and both processes."""

    def __init__(self, server: Process, channel: grpc.Channel) -> None:
        self.server = server
        self.channel = channel
        self.stub = pb_grpc.InferenceServiceStub(channel)
        (self.engine,) = (
            child
            for child in psutil.Process(server.process.pid).children()
            if runs(child, "engine_child")
        )

    def streams(self, count: int) -> list[grpc.Call]:
        """Calls that run for long, all started."""
        calls = [self.stub.Generate(long_request()) for _ in range(count)]
        for call in calls:
            assert next(call).HasField("started")
        return calls

    def until(self, holds: Callable[[pb.StatsResponse], bool]) -> pb.StatsResponse:
        """Ask Stats until something holds."""
        while not holds(stats := self.stub.Stats(pb.StatsRequest(), timeout=PATIENCE)):
            pass
        return stats

    def end(self) -> int:
        """The server's exit code, once both have gone."""
        code = self.server.end()
        self.engine.wait(PATIENCE)
        return code


@contextlib.contextmanager
def apart(*words: str) -> Iterator[Apart]:
    with process(*APART, *words) as server:
        with grpc.insecure_channel(server.address()) as channel:
            both = Apart(server, channel)
            try:
                yield both
            finally:
                with contextlib.suppress(psutil.NoSuchProcess):
                    both.engine.resume()


def test_it_generates_and_a_cancelled_call_gives_its_blocks_back() -> None:
    with apart() as both:
        short = long_request()
        short.sampling.max_tokens = 20
        messages = list(both.stub.Generate(short))
        assert sum(len(message.delta.token_ids) for message in messages) == 20
        timings = messages[-1].finished.timings
        assert timings.prefill_seconds > 0 and timings.decode_seconds > 0
        (call,) = both.streams(1)
        assert both.until(lambda s: s.requests.running == 1).cache.blocks_free < 64
        call.cancel()
        stats = both.until(lambda s: s.cache.blocks_free == s.cache.blocks_total)
        assert stats.requests.running == 0 and stats.requests.finished_cancelled == 1
        assert stats.steps.total > 20 and stats.memory.allocated_bytes > 0
        asked = both.stub.Stats(pb.StatsRequest(include_block_map=True))
        assert len(asked.cache.block_map) == 64
        both.server.process.send_signal(signal.SIGTERM)
        assert both.end() == 0


def test_a_signal_to_both_drains_under_load() -> None:
    """As a terminal sends it to its whole group."""
    with apart("--drain-seconds", "0.5") as both:
        calls = both.streams(16)
        both.engine.send_signal(signal.SIGINT)
        both.engine.send_signal(signal.SIGTERM)
        both.server.process.send_signal(signal.SIGINT)
        assert {code_of(call) for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        assert both.end() == 0
        assert "the engine" not in "".join(both.server.errors)


def test_a_second_signal_ends_both_at_once() -> None:
    with apart("--drain-seconds", "600", "--num-blocks", "2000") as both:
        calls = both.streams(32)  # so many that none has ended by then
        both.server.process.send_signal(signal.SIGTERM)
        both.server.wait_for("draining")
        both.server.process.send_signal(signal.SIGTERM)
        assert both.end() == 128 + signal.SIGTERM
        assert {code_of(call) for call in calls} == {grpc.StatusCode.UNAVAILABLE}


def test_an_engine_that_is_killed_ends_the_server_for_its_supervisor() -> None:
    with apart() as both:
        watch = health_pb2_grpc.HealthStub(both.channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        calls = both.streams(4)
        both.engine.kill()
        assert next(watch).status == NOT_SERVING
        assert {code_of(call) for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        assert both.end() == 1
        errors = "".join(both.server.errors)
        assert "the engine has died" in errors and "SIGKILL" in errors


def test_a_server_that_is_killed_takes_its_engine_along() -> None:
    with apart() as both:
        calls = both.streams(4)
        both.server.process.kill()
        both.engine.wait(PATIENCE)
        assert {code_of(call) for call in calls} == {grpc.StatusCode.UNAVAILABLE}


@pytest.mark.parametrize("at_work", [True, pytest.param(False, marks=pytest.mark.long)])
def test_an_engine_that_is_frozen_is_noticed_and_killed(at_work: bool) -> None:
    with apart("--watchdog-seconds", "0.5", "--watchdog-exit-seconds", "0.5") as both:
        calls = both.streams(2) if at_work else []
        both.engine.suspend()
        calls.append(both.stub.Generate(long_request()))
        both.server.wait_for("a step hangs")
        assert {code_of(call) for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        assert both.end() == 1
        assert "the engine is given up" in "".join(both.server.errors)


def test_an_engine_that_dies_while_it_is_built_is_no_fault_of_the_options() -> None:
    with process(*APART) as server:
        while not (children := psutil.Process(server.process.pid).children()):
            pass
        children[0].kill()
        assert server.end() == 1
        assert "Traceback" not in "".join(server.errors)


def test_what_cannot_start_is_one_line_and_leaves_no_process() -> None:
    mark = secrets.token_hex(8)

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        return quire("serve", *APART, *words, **{"MARK_OF_A_TEST": mark, FRESH: "1"})

    refused(start("--port", "0", "--cpu-kv-gib", "0.000001"), "cpu_kv_gib")
    refused(start("--port", "0", "--model", "random:huge"), "huge")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(start("--port", port), port)
    assert not list(marked(mark))


def marked(mark: str) -> Iterator[int]:
    """Processes of this machine that inherited the mark."""
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if one.environ().get("MARK_OF_A_TEST") == mark:
                yield one.pid


def test_the_engine_s_process_waits_for_nothing_slow_and_the_server_s_side_needs_no_torch() -> None:
    code = """if True:
        import sys
        import quire.clients.cli
        quire.clients.cli.build_app(["serve"])
        import quire.service.app.placement  # which starts it
        waited = {"numpy", "grpc"} & set(sys.modules)
        import quire.service.app.process
        sys.exit(" ".join(waited | {"torch", "triton"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "serve"], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""


def test_no_option_that_only_operators_know_is_on_a_command_line() -> None:
    """Others on the machine may read it."""
    told = EngineConfig(
        tensor_parallel_size=4,
        nnodes=2,
        master_addr="10.1.2.3",
        master_port=7001,
        join_secret_file="/run/secret",
        prefix_cache_seed=424_242,
    )
    line = placement.program(Settings(told, ServiceConfig()))
    assert not any(secret in " ".join(line) for secret in ("10.1.2.3", "7001", "/run", "424242"))
    assert line[-2] == "1", "of the four ranks two are here"
    assert set(DECIDING) <= json.loads(line[-1]).keys()


def settings(where: str, device: str) -> Settings:
    return Settings(EngineConfig(device=device), ServiceConfig(engine_process=where))


def test_where_the_engine_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement.has_own_process(settings("on", "cpu"))
    assert not placement.has_own_process(settings("off", "cuda"))
    assert placement.has_own_process(settings("auto", "cuda"))
    assert not placement.has_own_process(settings("auto", "cpu"))
    for sees in (True, False):
        monkeypatch.setattr(placement, "sees_gpu", lambda _, sees=sees: sees)
        assert placement.has_own_process(settings("auto", "auto")) is sees
    with pytest.raises(ConfigError, match="engine_process"):
        settings("perhaps", "cpu")


def test_where_there_is_no_posix_a_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "name", "nt")
    assert not placement.has_own_process(settings("auto", "cuda"))
    with pytest.raises(ConfigError, match="POSIX"):
        placement.has_own_process(settings("on", "cpu"))


def test_a_gpu_is_seen_by_its_device_node_unless_it_is_hidden() -> None:
    there = (os.devnull,)
    assert placement.sees_gpu({}, there)
    assert placement.sees_gpu({"CUDA_VISIBLE_DEVICES": "1"}, there)
    assert not placement.sees_gpu({"CUDA_VISIBLE_DEVICES": ""}, there)
    assert not placement.sees_gpu({"CUDA_VISIBLE_DEVICES": "-1"}, there)
    assert not placement.sees_gpu({}, ("/nothing/here",))


def test_an_engine_of_this_process_is_collected_once_nobody_has_it() -> None:
    """An engine knows its matchers, and they know whom they work beside."""
    link = placement.on_a_thread(EngineConfig(model="random:tiny", device="cpu"))
    matchers = link._builder.keywords["matchers"]  # type: ignore[attr-defined]
    matchers.set_concurrent_work(partial(id, matchers))
    known = weakref.ref(matchers)
    del link, matchers
    gc.collect()
    assert known() is None

"""`quire serve` over ranks in processes of their own: what it answers, and whoever is lost."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import grpc
import psutil
import pytest
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
from quire.service.app import placement
from quire.service.settings import ServiceConfig, Settings
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

TINY = ("--model", "random:tiny", "--device", "cpu")
# Small steps and few blocks: prompts are chunked, and rows preempted, each of which outgrows its
# first block. A long request has room alone.
SMALL = ("--num-blocks", "17", "--block-size", "128", "--max-num-batched-tokens", "256")
FEW = ("--max-num-seqs", "16")


class Shared:
    """A server over several ranks, ready, and all its processes."""

    def __init__(self, server: Process, channel: grpc.Channel, size: int) -> None:
        self.server = server
        self.stub = pb_grpc.InferenceServiceStub(channel)
        below = psutil.Process(server.process.pid).children(recursive=True)
        (self.engine,) = (p for p in below if runs(p, "engine_child"))
        self.ranks = [p for p in below if runs(p, "rank_child")]
        assert len(self.ranks) == size - 1

    def streams(self, count: int) -> list[grpc.Call]:
        """Calls that run for long, all of which have had a token."""
        calls = [self.stub.Generate(long_request()) for _ in range(count)]
        for call in calls:
            while not next(call).HasField("delta"):
                pass
        return calls

    def until(self, holds: Callable[[pb.StatsResponse], bool]) -> pb.StatsResponse:
        """Ask Stats until something holds."""
        while not holds(stats := self.stub.Stats(pb.StatsRequest(), timeout=PATIENCE)):
            pass
        return stats

    def end(self) -> int:
        """The server's exit code, once all have gone."""
        code = self.server.end()
        for one in (self.engine, *self.ranks):
            one.wait(PATIENCE)
        return code


@contextlib.contextmanager
def shared(size: int, *words: str) -> Iterator[Shared]:
    with process(*TINY, "--tensor-parallel-size", str(size), *words) as server:
        with grpc.insecure_channel(server.address()) as channel:
            running = Shared(server, channel, size)
            try:
                yield running
            finally:
                for rank in running.ranks:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        rank.resume()


def requests() -> list[pb.GenerateRequest]:
    """One of each kind of thing that a plan carries to the ranks."""
    made = []
    for number in range(12):
        request = pb.GenerateRequest()
        request.token_ids.ids.extend((i * i + number) % 3000 + 1 for i in range(120))
        request.sampling.max_tokens = 60
        request.sampling.ignore_eos = True
        made.append(request)
    siblings, seeded, penalised, filtered, edited = made[:5]
    siblings.sampling.n = 3
    siblings.sampling.temperature = 0.8
    siblings.sampling.seed = 7
    seeded.sampling.temperature = 1.0
    seeded.sampling.seed = 3
    penalised.sampling.repetition_penalty = 1.3
    penalised.sampling.frequency_penalty = 0.2
    filtered.sampling.temperature = 0.9
    filtered.sampling.top_k = 30
    filtered.sampling.top_p = 0.9
    filtered.sampling.seed = 5
    edited.sampling.logit_bias[17] = 4.0
    edited.sampling.banned_token_ids.append(18)
    return made


def answers(stub: pb_grpc.InferenceServiceStub) -> list[dict[int, list[int]]]:
    """What all of them get when they come at once: of each, tokens by index."""
    calls = [stub.Generate(request) for request in requests()]
    found: list[dict[int, list[int]]] = []
    for call in calls:
        tokens: dict[int, list[int]] = {}
        for message in call:
            tokens.setdefault(message.delta.index, []).extend(message.delta.token_ids)
        found.append(tokens)
    return found


def listening(*processes: psutil.Process) -> list[tuple[str, int]]:
    """Where these listen: on the loopback interface alone."""
    ports = [one for process in processes for one in process.net_connections("tcp")]
    found = [(one.laddr.ip, one.laddr.port) for one in ports if one.status == "LISTEN"]
    assert len(found) == len(processes)
    assert {ip for ip, _ in found} == {"127.0.0.1"}
    return found


def test_ranks_answer_as_one_process_does_until_one_is_killed() -> None:
    """One server for all of it: starting one takes long."""
    with process(*TINY, *SMALL, *FEW) as alone:
        with grpc.insecure_channel(alone.address()) as channel:
            expected = answers(pb_grpc.InferenceServiceStub(channel))
    with shared(2, *SMALL, *FEW) as running, contextlib.ExitStack() as strangers:
        for address in listening(running.engine, *running.ranks):
            stranger = strangers.enter_context(socket.create_connection(address))
            stranger.sendall(bytes(range(256)))
        assert answers(running.stub) == expected
        stats = running.until(lambda s: s.cache.blocks_free == s.cache.blocks_total)
        held = [rank.allocated_bytes for rank in stats.memory.ranks]
        assert len(held) == 2 and min(held) > 1 << 20
        assert stats.cache.preemptions > 0 and stats.steps.mixed > 0
        (call,) = running.streams(1)
        call.cancel()
        running.until(lambda s: s.requests.finished_cancelled == 1 and s.requests.running == 0)
        (rank,) = running.ranks
        (call,) = running.streams(1)
        rank.suspend()
        assert running.until(lambda _: True).requests.running == 1
        rank.resume()  # before the watchdog's bound: it goes on
        assert next(call).HasField("delta")
        rank.send_signal(signal.SIGINT)  # as a terminal's to its whole group: not its to answer
        rank.kill()
        assert code_of(call) == grpc.StatusCode.UNAVAILABLE
        assert running.end() == 1
        errors = "".join(running.server.errors)
        assert f"rank 1 (process {rank.pid}) ended by SIGKILL" in errors


@pytest.mark.long
def test_four_ranks_end_when_any_of_them_is_stopped_for_too_long() -> None:
    with shared(4, "--watchdog-seconds", "0.5", "--watchdog-exit-seconds", "0.5") as running:
        calls = running.streams(2)
        running.ranks[1].suspend()
        running.server.wait_for("a step hangs")
        assert {code_of(call) for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        assert running.end() == 1  # the stopped one too


@pytest.mark.long
@pytest.mark.parametrize("whose", ["server", "engine", "rank"])
@pytest.mark.parametrize("at_work", [True, False])
def test_whoever_is_killed_takes_all_others_along(whose: str, at_work: bool) -> None:
    with shared(4) as running:
        calls = running.streams(4) if at_work else []
        victims = {"engine": running.engine, "rank": running.ranks[1]}
        victims.get(whose, running.server.process).kill()
        assert {code_of(call) for call in calls} <= {grpc.StatusCode.UNAVAILABLE}
        running.end()


def test_a_start_that_cannot_be_is_one_line() -> None:
    def start(*words: str) -> None:
        refused(quire("serve", *TINY, "--port", "0", *words), "tensor_parallel_size = 3")

    start("--tensor-parallel-size", "3")
    start("--tensor-parallel-size", "3", "--engine-process", "off")


def settings(ranks: int, where: str = "auto") -> Settings:
    engine = EngineConfig(device="cpu", tensor_parallel_size=ranks)
    return Settings(engine, ServiceConfig(engine_process=where))


def test_an_engine_over_ranks_has_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not placement.has_own_process(settings(1))
    assert placement.has_own_process(settings(2))
    assert placement.has_own_process(settings(2, "on"))
    with pytest.raises(ConfigError, match="tensor_parallel_size = 2: not with engine_process"):
        placement.has_own_process(settings(2, "off"))
    monkeypatch.setattr(placement.os, "name", "nt")
    with pytest.raises(ConfigError, match="tensor_parallel_size = 2: not with a system that"):
        placement.has_own_process(settings(2))

"""`quire serve` on several nodes: played by processes of one machine."""

import signal
import socket
from pathlib import Path

import grpc
import psutil
import pytest
from support.fork_server import FRESH
from support.free_ports import free_port
from support.patience import PATIENCE
from support.server_process import long_request, process, quire, refused, runs

from quire.service.app import node
from quire.service.cli import torchrun
from quire.service.settings import read_settings
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

SECRET = "a secret of these tests alone"
TINY = ("--model", "random:tiny", "--device", "cpu", "--tensor-parallel-size", "2")


@pytest.fixture
def place() -> tuple[str, ...]:
    """Options of two nodes that meet at a port that is free."""
    meeting = ("--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    return (*TINY, "--nnodes", "2", *meeting)


def test_two_nodes_serve_and_end_when_node_0_does(place: tuple[str, ...]) -> None:
    secret = {"QUIRE_JOIN_SECRET": SECRET, FRESH: "1"}
    with process(*place, "--node-rank", "1", **secret) as other, process(*place, **secret) as first:
        with grpc.insecure_channel(first.address()) as channel:
            stub = pb_grpc.InferenceServiceStub(channel)
            call = stub.Generate(long_request())
            while not next(call).HasField("delta"):
                pass
            assert len(stub.Stats(pb.StatsRequest(), timeout=PATIENCE).memory.ranks) == 2
            other.process.send_signal(signal.SIGTERM)  # node 0's to answer
            other.wait_for("SIGTERM: this node ends when node 0 does")
            for _ in range(20):
                assert next(call).HasField("delta")
            call.cancel()
        (rank,) = psutil.Process(other.process.pid).children()
        assert runs(rank, "rank_child")
        assert SECRET not in "".join(rank.environ().values())
        with pytest.raises(ConnectionRefusedError):  # nobody else is awaited
            socket.create_connection(("127.0.0.1", int(place[-1])))
        first.process.send_signal(signal.SIGTERM)
        assert (first.end(), other.end()) == (0, 0)
        assert not rank.is_running()
    assert SECRET not in "".join(first.errors + other.errors)


@pytest.mark.long
@pytest.mark.parametrize("whose", ["node 0", "its engine", "node 1", "its rank"])
def test_whoever_is_killed_takes_both_nodes_along(place: tuple[str, ...], whose: str) -> None:
    secret = {"QUIRE_JOIN_SECRET": SECRET}
    with process(*place, "--node-rank", "1", **secret) as other, process(*place, **secret) as first:
        with grpc.insecure_channel(first.address()) as channel:
            call = pb_grpc.InferenceServiceStub(channel).Generate(long_request())
            while not next(call).HasField("delta"):
                pass
            node_0, node_1 = (psutil.Process(one.process.pid) for one in (first, other))
            (engine,) = (p for p in node_0.children() if runs(p, "engine_child"))
            (rank,) = node_1.children()
            victims = {"node 0": node_0, "its engine": engine, "node 1": node_1, "its rank": rank}
            victims[whose].kill()
            with pytest.raises(grpc.RpcError) as ended:
                for _ in call:
                    pass
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        assert 0 not in (first.end(), other.end())
        for one in (engine, rank):
            one.wait(PATIENCE)


def test_a_node_that_has_not_joined_ends_at_the_first_signal(place: tuple[str, ...]) -> None:
    with (
        socket.create_server(("127.0.0.1", int(place[-1]))) as silent,
        process(*place, "--node-rank", "1", QUIRE_JOIN_SECRET=SECRET) as other,
    ):
        silent.settimeout(PATIENCE)
        with silent.accept()[0]:  # which it waits for to say something
            other.process.send_signal(signal.SIGTERM)
            assert other.end() == 128 + signal.SIGTERM


def test_a_start_that_cannot_be_is_one_line_on_each_node(
    place: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    hurried = ("serve", *place, "--port", "0", "--join-seconds", "0.1")
    found = ("--join-secret-file", str(file))
    refused(quire(*hurried, *found), "node 1 did not come within 0.1 s")
    refused(quire(*hurried, *found, "--node-rank", "1"), place[-1], "node 0 was not reached within")
    refused(quire(*hurried, "--node-rank", "1"), "need a secret in common")
    shown = quire(*hurried, "--print-config", QUIRE_JOIN_SECRET=SECRET)
    assert shown.returncode == 0 and SECRET not in shown.stdout


@pytest.mark.long
def test_nodes_that_differ_are_refused_on_both_sides(place: tuple[str, ...]) -> None:
    def both(other: str, mine: tuple[str, ...], theirs: tuple[str, ...], words: str) -> None:
        with process(*place, *mine, QUIRE_JOIN_SECRET=SECRET) as first:
            done = quire(
                "serve", *place, *theirs, "--node-rank", "1", "--num-blocks", "64",
                QUIRE_JOIN_SECRET=other,
            )  # fmt: skip
            refused(done, words)
            if other == SECRET:
                assert first.end() == 2 and words in first.errors[-1]

    both(SECRET, ("--seed", "1"), ("--seed", "2"), "node 1 has seed = 2, and node 0 has 1")
    both("not the one they have", (), (), "node 0 has another secret")


def test_torchruns_environment_stands_for_the_options() -> None:
    told = {
        "TORCHELASTIC_RUN_ID": "none",
        "GROUP_WORLD_SIZE": "4",
        "GROUP_RANK": "3",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500",
    }
    options = torchrun.options(told)
    assert options == {
        "nnodes": 4,
        "node_rank": 3,
        "master_addr": "10.0.0.1",
        "master_port": 29501,  # 29500 is torchrun's own
    }
    engine = read_settings({**options, "tensor_parallel_size": 16}, {}, None).engine
    assert (engine.nnodes, engine.node_rank, engine.ranks_per_node) == (4, 3, 4)
    assert torchrun.options({**told, "QUIRE_MASTER_PORT": "7"}).keys() == options.keys() - {
        "master_port"
    }
    assert torchrun.options({**told, "GROUP_WORLD_SIZE": "1"}) == {}
    assert torchrun.options({k: v for k, v in told.items() if "ELASTIC" not in k}) == {}
    for change, words in [
        ({"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE = 4: Quire starts a node's ranks itself"),
        ({"GROUP_RANK": "x"}, "GROUP_RANK = 'x': must be a whole number"),
    ]:
        with pytest.raises(torchrun.ConfigError, match=words):
            torchrun.options({**told, **change})


def test_a_second_signal_ends_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: dict[int, object] = {}
    codes: list[int] = []
    monkeypatch.setattr(node.signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(node.os, "_exit", codes.append)
    node._wait_for_node_0(signal.SIGTERM, None)
    assert codes == []
    handlers[signal.SIGINT](signal.SIGINT, None)  # type: ignore[operator]
    assert codes == [128 + signal.SIGINT]

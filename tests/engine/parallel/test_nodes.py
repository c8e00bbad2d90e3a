"""Ranks on several nodes, as processes that say what a test wants: whoever ends, all end."""

import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from support.patience import PATIENCE

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, ModelError, RankError
from quire.engine.parallel import follower, network, node, ranks
from quire.engine.parallel.frame_channel import FrameChannel, Kind
from quire.engine.parallel.join_listener import JoinListener
from quire.engine.parallel.node_config import NodeConfig
from quire.engine.parallel.process import Program
from quire.engine.parallel.ranks import Ranks, ended_on_error
from quire.engine.parallel.secret import Secret

SECRET = Secret(b"what the nodes have in common")
NODE_CONFIG: NodeConfig = {"Quire": "1"}
# Ranks 0 and 1 here, 2 and 3 there. They need no torch: `say(kind, **values)`, `hear()`, `asked`.
_BEGIN = """
import os, socket, sys, time
from quire.engine import lifeline
from quire.engine.parallel.frame_channel import Kind, FrameChannel
parent = socket.socket(fileno=int(sys.argv[1]))
lifeline.end_with_parent(parent)
channel = FrameChannel(parent)
say, hear = channel.send_json, channel.receive
asked = channel.expect(Kind.BUILD)
rank = asked["rank"]
"""
READY = "say(Kind.READY, pid=os.getpid(), address=asked['address'])\n"
STAYS = "while hear()[0] is not Kind.STOP: pass\n"


class Cluster:
    """Two nodes: node 0 is this test's, and node 1 is followed on a thread."""

    def __init__(self, pool: ThreadPoolExecutor, body: str) -> None:
        listener = network.listen("127.0.0.1", 0)
        host, port = listener.getsockname()
        both = EngineConfig(tensor_parallel_size=4, nnodes=2, master_addr=host, master_port=port)
        program = [sys.executable, "-P", "-c", _BEGIN + body]
        self.lost = threading.Event()
        self.node: Future[int] = pool.submit(
            node.follow, both.replace(node_rank=1), NODE_CONFIG, SECRET, program
        )
        self.ranks = Ranks(Program(program), 4, self.lost.set, here=2)
        self.ranks.take_in(
            JoinListener(listener, SECRET, NODE_CONFIG, node.places(both)).gather(PATIENCE)
        )
        self.ranks.build({}, 1)

    def ready(self) -> list[psutil.Process]:
        """The processes of ranks 1 to 3."""
        said = self.ranks.wait_for(Kind.READY)
        self.ranks.serving()
        return [psutil.Process(one["pid"]) for one in said]


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    monkeypatch.setattr(node, "GRACE", PATIENCE)
    with ThreadPoolExecutor(1) as threads:
        yield threads


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    return not alive


def test_ranks_of_all_nodes_are_built_and_stopped(pool: ThreadPoolExecutor) -> None:
    cluster = Cluster(pool, READY + STAYS)
    processes = cluster.ready()
    said = cluster.ranks.wait_for(Kind.READY)
    assert [one["address"] for one in said] == ["127.0.0.1"] * 3
    assert cluster.ranks.address == "127.0.0.1"
    cluster.ranks.stop()
    assert cluster.node.result(PATIENCE) == node.EXIT_OK
    assert gone(processes) and not cluster.lost.is_set()


@pytest.mark.parametrize("whose", [0, 2])
def test_a_rank_that_is_lost_takes_all_nodes_along(pool: ThreadPoolExecutor, whose: int) -> None:
    cluster = Cluster(pool, READY + STAYS)
    processes = cluster.ready()
    processes[2 - whose].suspend()  # one on the other node, which is not waited for
    processes[whose].kill()
    assert cluster.lost.wait(PATIENCE)
    with pytest.raises(RankError, match=rf"rank {whose + 1} \(.*\) ended by SIGKILL"):
        cluster.ranks.send(Kind.PLAN, b"")
    end_of_node_0(cluster)
    assert cluster.node.result(PATIENCE) == node.EXIT_LOST
    assert gone(processes)


def end_of_node_0(cluster: Cluster) -> None:
    """What the end of its process does to its sockets."""
    for one in cluster.ranks._nodes.values():
        one.channel.end()


def test_a_node_that_is_gone_takes_all_along(pool: ThreadPoolExecutor) -> None:
    cluster = Cluster(pool, READY + STAYS)
    processes = cluster.ready()
    end_of_node_0(cluster)  # each sees that the other is gone
    assert cluster.node.result(PATIENCE) == node.EXIT_LOST
    assert cluster.lost.wait(PATIENCE)
    with pytest.raises(RankError, match=r"\(?node 1"):
        cluster.ranks.check()
    assert gone(processes)


def test_a_node_that_does_not_answer_takes_all_along(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose process is stopped, while its ranks' are not."""
    asked, answers = queue.SimpleQueue[None](), threading.Event()
    answers.set()
    say, is_readable = FrameChannel.send_json, FrameChannel.is_readable
    silent = [False]

    def watched(channel: FrameChannel, kind: Kind, **values: Any) -> None:
        if kind is Kind.ASKED:
            asked.put(None)
        if kind is not Kind.ALIVE or answers.is_set():
            say(channel, kind, **values)

    def in_turn(channel: FrameChannel, _seconds: float) -> bool:
        """Silence, and then the answer to what was asked, as long as there are answers."""
        silent[0] = not silent[0]
        while answers.is_set() and not silent[0]:
            if is_readable(channel, 0.01):
                return True
        return False

    monkeypatch.setattr(FrameChannel, "send_json", watched)
    monkeypatch.setattr(FrameChannel, "is_readable", in_turn)
    cluster = Cluster(pool, READY + STAYS)
    processes = cluster.ready()
    try:
        for _ in range(3 * ranks.MAX_ASKED):
            asked.get(timeout=PATIENCE)
        assert not cluster.lost.is_set()  # it has answered each time
        answers.clear()
        assert cluster.lost.wait(PATIENCE)
        with pytest.raises(RankError, match=r"node 1 at .* does not answer: 6 times in 30 s"):
            cluster.ranks.check()
    finally:
        end_of_node_0(cluster)
    assert cluster.node.result(PATIENCE) == node.EXIT_LOST
    assert gone(processes)


def test_what_keeps_a_rank_from_starting_is_said_on_every_node(pool: ThreadPoolExecutor) -> None:
    says = "say(Kind.REFUSED, error='ModelError', message='x is missing')\n"
    cluster = Cluster(pool, f"if rank == 3:\n    {says}" + STAYS)
    with pytest.raises(ModelError, match="rank 3: x is missing"):
        with ended_on_error(cluster.ranks):
            cluster.ranks.wait_for(Kind.READY)
    with pytest.raises(ConfigError, match="rank 3: x is missing"):
        cluster.node.result(PATIENCE)


def test_a_node_ends_where_node_0_goes_on_without_its_rank(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "GRACE", 0.0)
    monkeypatch.setattr(Ranks, "_lost", lambda *_: None)
    cluster = Cluster(pool, READY + STAYS)
    processes = cluster.ready()
    os.kill(processes[2].pid, signal.SIGKILL)
    assert cluster.node.result(PATIENCE) == node.EXIT_LOST
    cluster.ranks.end()
    assert gone(processes)


def test_a_node_has_the_model_where_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[EngineConfig] = []

    class Heard:
        """A channel that says what to build."""

        @staticmethod
        def expect(_kind: Kind) -> dict[str, Any]:
            config = {"model": "/there", "seed": 3}
            return {"config": config, "threads": 1, "rank": 0, "address": "127.0.0.1"}

    def builder(config: EngineConfig, *_: Any) -> Any:
        heard.append(config)
        raise ModelError("enough")

    monkeypatch.setattr(follower, "exchange_of", lambda *_: None)
    channel: Any = Heard()
    with pytest.raises(ModelError):
        follower.build(builder, channel, "/here")
    assert [(config.model, config.seed) for config in heard] == [("/here", 3)]

"""The listener of node 0: who is taken in, and what strangers change."""

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from support.patience import PATIENCE

from quire.engine.errors import ConfigError, RankError
from quire.engine.parallel import handshake, join_listener, joining, network
from quire.engine.parallel.handshake import NO_RANK, Opening
from quire.engine.parallel.join_listener import JoinedPeer, JoinListener
from quire.engine.parallel.joining import Joining
from quire.engine.parallel.node_config import NodeConfig, pack
from quire.engine.parallel.secret import Secret

SECRET = Secret(b"what the nodes have in common")


NODE_CONFIG: NodeConfig = {"Quire": "1", "torch": "2", "max_num_seqs": "8"}


TWO_NODES = [(1, NO_RANK), (1, 1)]


class Pool(ThreadPoolExecutor):
    """Threads, and who waits on them."""

    def __init__(self) -> None:
        super().__init__(4)
        self.waiting: list[Waiting] = []


class Waiting:
    """Node 0, waiting on a thread of its own."""

    def __init__(
        self,
        pool: Pool,
        expected: list[tuple[int, int]],
        seconds: float = PATIENCE,
        clock: Callable[[], float] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        listener = network.listen("127.0.0.1", 0)
        self.address: tuple[str, int] = listener.getsockname()
        more: dict[str, Any] = {} if clock is None else {"clock": clock}
        self.listener = JoinListener(listener, SECRET, NODE_CONFIG, expected, **more)
        self.members: Future[list[JoinedPeer]] = pool.submit(self.listener.gather, seconds, check)
        pool.waiting.append(self)

    def come(
        self,
        node: int,
        rank: int = NO_RANK,
        node_config: NodeConfig = NODE_CONFIG,
        secret: Secret = SECRET,
    ) -> socket.socket:
        """A node's connection. Raises ConfigError as a node does."""
        going = Joining(*self.address, secret, PATIENCE, pause=tries_again)
        return going.connect(Opening(node, rank, pack(node_config)))

    def knock(self) -> tuple[socket.socket, bytes]:
        """A stranger's connection, and how it was greeted."""
        connection = socket.create_connection(self.address, timeout=PATIENCE)
        return connection, connection.recv(handshake.HELLO_BYTES, socket.MSG_WAITALL)

    def end(self) -> None:
        """Where it has not ended: a test has failed."""
        if not self.members.done():
            self.listener._missing.clear()
            with contextlib.suppress(OSError):
                socket.create_connection(self.address).close()  # it looks


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool() as threads:
        yield threads
        for one in threads.waiting:
            one.end()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def opened_by(
    greeting: bytes, secret: Secret = SECRET, node_config: bytes = pack(NODE_CONFIG)
) -> bytes:
    said = Opening(1, NO_RANK, node_config)
    return handshake.signed(secret, greeting, handshake.unsigned(said), said.node_config)


def of_length(greeting: bytes, length: int) -> bytes:
    data = bytearray(opened_by(greeting))
    struct.pack_into("<I", data, 4 + 32 + 8, length)
    return bytes(data)


STRANGERS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "silent": lambda _greeting, _heard: b"",
    "garbage": lambda _greeting, _heard: bytes(range(256)) * 64,
    "another secret": lambda greeting, _heard: opened_by(greeting, Secret(b"something else")),
    "replayed": lambda _greeting, heard: heard,
    "cut off": lambda greeting, _heard: opened_by(greeting)[:-1],
    "too long": lambda greeting, _heard: of_length(greeting, handshake.MAX_CONFIG_BYTES + 1),
    "no configuration": lambda greeting, _heard: opened_by(greeting, node_config=b"[1]"),
    "goes on": lambda greeting, _heard: opened_by(greeting) + b"\0",
}


def test_strangers_change_nothing(pool: Pool, stack: ExitStack) -> None:
    waiting = Waiting(pool, TWO_NODES)
    first, overheard = waiting.knock()
    stack.enter_context(first)
    heard, strangers = opened_by(overheard), {}
    for name, words in STRANGERS.items():
        stranger, greeting = waiting.knock()
        strangers[name] = stack.enter_context(stranger)
        stranger.sendall(words(greeting, heard))
    for name in (
        "garbage",
        "another secret",
        "replayed",
        "too long",
        "no configuration",
        "goes on",
    ):
        answer = b""
        try:
            while more := strangers[name].recv(1 << 16):
                answer += more
                assert handshake.rejected().startswith(answer), name
        except ConnectionResetError:  # what it had said was not even read
            pass
        assert answer in (b"", handshake.rejected()), name
    own = stack.enter_context(waiting.come(1))
    assert not waiting.members.done()
    ranks = stack.enter_context(waiting.come(1, 1))
    members = waiting.members.result(PATIENCE)
    assert [(one.node, one.rank, one.address) for one in members] == [
        (1, NO_RANK, "127.0.0.1"),
        (1, 1, "127.0.0.1"),
    ]
    for mine, theirs in zip(members, (own, ranks), strict=True):
        assert mine.connection.getpeername() == theirs.getsockname()
        mine.connection.close()
    for name in ("silent", "cut off"):
        assert strangers[name].recv(1) == b""  # the listener is closed
    with pytest.raises(OSError):
        socket.create_connection(waiting.address)


def test_many_silent_strangers_make_room(
    pool: Pool, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join_listener, "MAX_PENDING", 3)
    waiting = Waiting(pool, TWO_NODES[:1])
    strangers = [stack.enter_context(waiting.knock()[0]) for _ in range(5)]
    stack.enter_context(waiting.come(1))  # at the first attempt
    assert [one.recv(1) for one in strangers[:3]] == [b"", b"", b""]  # the oldest
    (member,) = waiting.members.result(PATIENCE)
    member.connection.close()


def test_a_silent_stranger_is_not_kept(pool: Pool, stack: ExitStack) -> None:
    now = [0.0]
    waiting = Waiting(pool, TWO_NODES[:1], 60, lambda: now[0])
    stranger = stack.enter_context(waiting.knock()[0])
    now[0] = join_listener.PENDING_SECONDS
    stack.enter_context(waiting.knock()[0])  # it looks at the clock
    assert stranger.recv(1) == b""
    stack.enter_context(waiting.come(1))
    waiting.members.result(PATIENCE)[0].connection.close()


def test_a_node_that_does_not_come_is_named_and_the_others_hear_of_it(
    pool: Pool, stack: ExitStack
) -> None:
    now = [0.0]
    waiting = Waiting(pool, [(1, NO_RANK), (2, NO_RANK), (3, NO_RANK)], 60, lambda: now[0])
    came = stack.enter_context(waiting.come(2))
    now[0] = 60.0
    with contextlib.suppress(OSError):  # it looks at the clock now, or has done so already
        stack.enter_context(waiting.knock()[0])
    words = "nodes 1, 3 did not come within 60 s"
    with pytest.raises(ConfigError, match=words):
        waiting.members.result(PATIENCE)
    channel = joining.FrameChannel(came)
    assert channel.expect(joining.Kind.REFUSED) == {"message": words}


def test_a_node_with_other_terms_is_refused_on_both_sides(pool: Pool) -> None:
    waiting = Waiting(pool, TWO_NODES)
    words = "node 1 has max_num_seqs = 9, and node 0 has 8: they must be equal"
    with pytest.raises(ConfigError) as refused:
        with waiting.come(1, node_config={**NODE_CONFIG, "max_num_seqs": "9"}) as connection:
            joining.FrameChannel(connection).expect(joining.Kind.JOINED)
    assert str(refused.value) == words
    with pytest.raises(ConfigError, match=words):
        waiting.members.result(PATIENCE)


def test_two_nodes_of_one_number_and_one_of_none(pool: Pool, stack: ExitStack) -> None:
    waiting = Waiting(pool, TWO_NODES)
    stack.enter_context(waiting.come(1))
    with pytest.raises(ConfigError, match=r"node 1 has come already, from 127\.0\.0\.1"):
        waiting.come(1)
    with pytest.raises(ConfigError, match="no rank 2 of node 1 here"):
        waiting.come(1, 2)
    stack.enter_context(waiting.come(1, 1))
    for member in waiting.members.result(PATIENCE):
        member.connection.close()


def test_a_node_that_has_gone_again_may_come_again(pool: Pool, stack: ExitStack) -> None:
    waiting = Waiting(pool, TWO_NODES)
    first = waiting.come(1)
    first.close()
    again = None
    while again is None:  # until it has been noticed
        try:
            again = stack.enter_context(waiting.come(1))
        except ConfigError as error:
            assert "has come already" in str(error)
    stack.enter_context(waiting.come(1, 1))
    members = waiting.members.result(PATIENCE)
    assert members[0].connection.getpeername() == again.getsockname()
    for member in members:
        member.connection.close()


def test_what_is_heard_late_of_one_that_has_gone_is_not_of_who_came_again(
    pool: Pool, stack: ExitStack
) -> None:
    """Both connections of a node end at once, and it is back before the second is looked at."""
    waiting = Waiting(pool, [*TWO_NODES, (2, NO_RANK)])
    first = waiting.come(1)
    (gone,) = waiting.listener._members.values()
    first.close()
    while (1, NO_RANK) not in waiting.listener._missing:
        waiting.knock()[0].close()  # it looks
    stack.enter_context(waiting.come(1))
    waiting.listener._left(gone)
    stack.enter_context(waiting.come(1, 1))
    stack.enter_context(waiting.come(2))
    for member in waiting.members.result(PATIENCE):
        member.connection.close()


def test_a_rank_of_node_0_that_is_lost_meanwhile_ends_the_wait(
    pool: Pool, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join_listener, "LOOK_SECONDS", 0.01)
    lost: list[RankError] = []

    def check() -> None:
        if lost:
            raise lost[0]

    waiting = Waiting(pool, TWO_NODES, check=check)
    came = stack.enter_context(waiting.come(1))
    lost.append(RankError("rank 1 (process 7) ended by SIGKILL"))
    with pytest.raises(RankError, match="rank 1 "):
        waiting.members.result(PATIENCE)
    told = joining.FrameChannel(came).expect(joining.Kind.REFUSED)
    assert told == {"message": "rank 1 (process 7) ended by SIGKILL"}


# ---------------------------------------------------------------- the other side


def false_node_0(pool: Pool, *answers: bytes) -> tuple[str, int]:
    """Someone who says this, whatever is said."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with listener:
            connection, _ = listener.accept()
        with connection:
            for one in answers:
                connection.sendall(one)
                connection.recv(1 << 16)

    pool.submit(answer)
    return listener.getsockname()


def tries_again(_seconds: float) -> None:
    raise AssertionError("it tries again")


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([bytes(handshake.HELLO_BYTES)], "what listens there is no node 0 of Quire's"),
        ([handshake.hello(), handshake.rejected()], "node 0 has another secret"),
        ([handshake.hello(), b"\1" + bytes(32)], "whoever listens there does not have the secret"),
    ],
)
def test_a_node_goes_with_nobody_who_has_not_the_secret(
    pool: Pool, answers: list[bytes], words: str
) -> None:
    address = false_node_0(pool, *answers)
    with pytest.raises(ConfigError, match=words):
        Joining(*address, SECRET, PATIENCE, pause=tries_again).connect(Opening(1, NO_RANK, b"{}"))


def test_a_node_0_that_is_not_reached_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host, port = taken.getsockname()
    now, pauses = [0.0], []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += 20.0

    going = Joining(host, port, SECRET, 50, lambda: now[0], pause)
    words = rf"master_addr = {host}, master_port = {port}: node 0 was not reached within 50 s \("
    with pytest.raises(ConfigError, match=words):
        going.connect(Opening(1, NO_RANK, b"{}"))
    assert len(pauses) == 3


def test_sockets_between_nodes_notice_a_machine_that_vanishes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as connection:
            network.kept_alive(connection)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if not hasattr(socket, "TCP_USER_TIMEOUT"):
                pytest.skip("not Linux")
            asked = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            idle, between, count = (connection.getsockopt(socket.IPPROTO_TCP, o) for o in asked)
            unheard = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert idle + between * count <= 10 and unheard <= 10_000


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1"])
def test_node_0_listens_on_one_interface_of_its_own(address: str) -> None:
    with pytest.raises(ConfigError, match=rf"master_addr = {address}, master_port = 0"):
        network.listen(address, 0)

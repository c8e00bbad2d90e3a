"""What ranks on GPUs agree on before any of them computes, told without one; see also
test_gpu_exchange.py."""

import ctypes
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from support.patience import PATIENCE
from torch._C._distributed_c10d import HashStore

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, RankError
from quire.engine.model.layers.parallel import World, has_mail
from quire.engine.model.layers.residual import residual_norm
from quire.engine.parallel import gpu_exchange, nccl, symmetric
from quire.engine.parallel.gpu_exchange import DeviceExchange, over_nccl
from quire.engine.parallel.rendezvous import exchange_of
from quire.engine.parallel.store import Board, BoardStore
from quire.engine.runner.results import Results
from quire.engine.runner.sampler import Sampled
from quire.kernels import reference

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


# ---------------------------------------------------------------- NCCL


class Call:
    """A function of a C library, which notes what it was called with."""

    def __init__(self, result: Any, then: Callable[..., None] = lambda *_: None) -> None:
        self.result, self.then = result, then
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        self.then(*arguments)
        return self.result


@dataclass
class Library:
    """NCCL's calls, in the library's place."""

    ncclGetErrorString: Call = field(default_factory=lambda: Call(b"unhandled system error"))
    ncclGetUniqueId: Call = field(default_factory=lambda: Call(0, _fill))
    ncclCommInitRank: Call = field(default_factory=lambda: Call(0))
    ncclAllGather: Call = field(default_factory=lambda: Call(0))


def _fill(unique: Any) -> None:
    ctypes.memset(unique, 0xA5, 128)


@dataclass
class Stream:
    cuda_stream: int = 77


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setattr(nccl.ctypes, "CDLL", lambda _name: found)
    monkeypatch.setattr(nccl.torch.cuda, "current_stream", lambda _device: Stream())
    monkeypatch.setattr(nccl.torch.cuda, "device", lambda _device: torch.no_grad())
    for name in (*nccl._ALWAYS, "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    return found


def test_all_ranks_come_by_one_id_and_multicast_is_off(library: Library) -> None:
    store = HashStore()
    for rank in (0, 1):
        nccl.Communicator(store, rank, 2, GPU)
    assert len(library.ncclGetUniqueId.calls) == 1
    for rank, (_, size, unique, number) in enumerate(library.ncclCommInitRank.calls):
        assert (size, number, bytes(unique.bytes)) == (2, rank, b"\xa5" * 128)
    assert nccl.os.environ["NCCL_NVLS_ENABLE"] == "0"
    assert nccl.os.environ["NCCL_SOCKET_IFNAME"] == "lo"


def test_between_nodes_nccl_finds_its_way_and_each_node_counts_its_own_gpus(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    nccl.Communicator(HashStore(), 0, 2, GPU, one_node=False)
    assert len(library.ncclCommInitRank.calls) == 1
    assert "NCCL_SOCKET_IFNAME" not in nccl.os.environ
    met: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_exchange, "over_nccl", lambda *args, **more: met.append((args, more)))
    nodes = {"nnodes": 2, "node_rank": 1, "master_addr": "a", "master_port": 9}
    config = EngineConfig(model="random:tiny", tensor_parallel_size=4)
    exchange_of(config, HashStore(), 3)
    exchange_of(config.replace(**nodes), HashStore(), 3)
    exchange_of(config.replace(dtype="float32"), HashStore(), 0)
    found = [(args[3].index, args[4], more["one_node"]) for args, more in met]
    assert found == [(3, 128, True), (1, None, False), (0, None, True)]


def test_bytes_are_gathered_on_the_current_stream(library: Library) -> None:
    communicator = nccl.Communicator(HashStore(), 0, 3, GPU)
    x = torch.arange(12, dtype=torch.bfloat16).view(3, 4).t()
    out = communicator.gather(x)
    assert (out.shape, out.dtype) == ((3, 4, 3), torch.bfloat16)
    sent, taken, count, kind, _, stream = library.ncclAllGather.calls[0]
    assert (taken, count, kind, stream) == (out.data_ptr(), 24, 1, 77)
    assert sent != x.data_ptr()  # what was sent stands in rows


def test_what_nccl_refuses_ends_the_ranks(library: Library) -> None:
    communicator = nccl.Communicator(HashStore(), 0, 2, GPU)
    library.ncclAllGather.result = 2
    with pytest.raises(RankError, match="do not exchange any more: NCCL: unhandled system error"):
        communicator.gather(torch.ones(2))


def test_a_machine_without_nccl_is_told() -> None:
    if torch.cuda.is_available():
        pytest.skip("it has it")
    with pytest.raises(ConfigError, match="several GPUs need NCCL, which is not there"):
        nccl.Communicator(HashStore(), 0, 2, GPU)


# ---------------------------------------------------------------- who has the kernel


def test_ranks_meet_in_a_folder_of_their_own_which_goes() -> None:
    """With what torch asks of a store, and no thread of the interpreter between them."""
    board, gone = Board(), []

    def one(rank: int) -> bytes:
        with symmetric.rendezvous_store(BoardStore(board), rank, 2) as store:
            folder = Path(BoardStore(board).get(symmetric._FOLDER).decode())
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            store.set(f"key {rank}", b"\x00\xff".hex())
            found = store.get(f"key {1 - rank}")
            met.wait()
        gone.append(folder)
        return bytes(found)

    met = threading.Barrier(2, timeout=PATIENCE)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(one, range(2))) == [b"00ff", b"00ff"]
    assert not gone[0].exists()


@dataclass
class Inbox:
    late: bool = False
    mail: str = "mail"


@dataclass
class Communicator:
    """Of ranks of which the others say what is given."""

    others: bool = True
    gathered: int = 0

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        self.gathered += 1
        return torch.stack([x, torch.full_like(x, self.others)])


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., DeviceExchange]:
    def run(
        *, size: int = 2, width: int | None = 8, others: bool = True, fails: str = "",
        reach: bool = True,
    ) -> DeviceExchange:  # fmt: skip
        communicator = Communicator(others)

        def inbox(*_: Any) -> Inbox:
            assert communicator.gathered, "somebody may still ask for the place"
            if fails:
                raise RuntimeError(fails)
            return Inbox()

        monkeypatch.setattr(gpu_exchange.torch.cuda, "set_device", lambda _device: None)
        monkeypatch.setattr(gpu_exchange, "Communicator", lambda *_, **__: communicator)
        monkeypatch.setattr(symmetric, "Inbox", inbox)
        monkeypatch.setattr(symmetric, "reachable", lambda _size: reach)
        return over_nccl(HashStore(), 0, size, CPU, width)

    return run


BF16 = torch.ones(1, 8, dtype=torch.bfloat16)


def test_ranks_that_reach_each_other_have_the_kernel(
    meet: Callable[..., DeviceExchange], caplog: pytest.LogCaptureFixture
) -> None:
    exchange = meet()
    assert has_mail(exchange)
    assert exchange.mail_for(BF16) == "mail"  # type: ignore[comparison-overlap]
    assert exchange.mail_for(BF16.float()) is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"reach": False}, "not all GPUs reach one another's memory"),
        ({"size": 3}, "3 is no power of two"),
        ({"width": 9}, "rows of 9 numbers"),
        ({"fails": "no handle\nC++ trace"}, "slower: no handle"),
        ({"others": False}, "slower: a peer"),
    ],
)
def test_else_nccl_is_all_there_is_and_one_line_says_so(
    given: dict[str, Any],
    words: str,
    meet: Callable[..., DeviceExchange],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert meet(**given).mail_for(BF16) is None
    assert len(caplog.records) == 1
    assert words in caplog.text and "C++" not in caplog.text


def test_a_wait_that_was_given_up_is_told_with_the_step(
    meet: Callable[..., DeviceExchange],
) -> None:
    exchange = meet()
    results = Results(CPU, 4, World(0, 2, exchange).check)
    pending = results.collect(Sampled(torch.tensor([5, 6])), 2, [None, None])
    assert pending.wait().tokens == [[5], [6]]
    exchange._inbox.late = True  # type: ignore[union-attr, misc]
    pending = results.collect(Sampled(torch.tensor([5, 6])), 2, [None, None])
    with pytest.raises(RankError, match="one has not answered in time"):
        pending.wait()


# ---------------------------------------------------------------- the operation


@dataclass
class Mailed:
    """An exchange with the kernel, for one dtype."""

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, x])

    def mail_for(self, partial: torch.Tensor) -> Any:
        return "mail" if partial.dtype == torch.bfloat16 else None

    def check(self) -> None:
        """Nothing can be late."""


class Ops:
    """The operations, with the kernel's."""

    rms_norm = staticmethod(reference.rms_norm)

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def residual_norm(self, partial: Any, residual: Any, weight: Any, *rest: Any) -> Any:
        self.seen.append((residual, rest[-1]))
        return partial, weight


def test_the_kernel_takes_what_it_can_and_the_twin_the_rest() -> None:
    ops, world, weight = Ops(), World(0, 2, Mailed()), torch.ones(8)
    stream = residual_norm(ops, world, BF16, None, weight, 1e-6)  # type: ignore[arg-type]
    assert stream.normed is weight and ops.seen == [(None, "mail")]
    part, residual = torch.full((1, 8), 2.0), torch.ones(1, 8)
    stream = residual_norm(ops, world, part, residual, weight, 1e-6)  # type: ignore[arg-type]
    assert len(ops.seen) == 1
    assert stream.residual.tolist() == [[5.0] * 8]
    torch.testing.assert_close(stream.normed, torch.ones(1, 8))

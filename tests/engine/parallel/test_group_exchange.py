"""What ranks gather from one another."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quire.engine.errors import RankError
from quire.engine.parallel.group_exchange import GroupExchange, over_gloo
from quire.engine.parallel.leader import LeadingRunner
from quire.engine.parallel.store import Board, BoardStore


def together(size: int, run: Any) -> list[Any]:
    """Of each rank, on a thread, what `run` returns of its exchange."""
    board = Board()

    def one(rank: int) -> Any:
        return run(rank, over_gloo(BoardStore(board), rank, size))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


@pytest.mark.parametrize("size", [2, 3])
def test_what_is_gathered_stands_in_rank_order_whatever_it_is(size: int) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.int64, torch.bool)

    def run(rank: int, exchange: GroupExchange) -> list[torch.Tensor]:
        wide = [torch.full((3, 4), rank + 1).to(dtype).t() for dtype in dtypes]
        return [exchange.gather(x) for x in (*wide, torch.tensor([float(rank)]).log())]

    first, *others = together(size, run)
    for mine, dtype in zip(first, dtypes, strict=False):
        expected = torch.stack([torch.full((4, 3), rank + 1).to(dtype) for rank in range(size)])
        assert mine.dtype is dtype and mine.equal(expected)
    assert first[-1][:2].tolist() == [[float("-inf")], [0.0]]
    for other in others:
        assert all(map(torch.equal, first, other))


def test_an_exchange_whose_other_end_is_gone_is_fatal() -> None:
    class Broken:
        def _allgather_base(self, *_: object) -> None:
            raise RuntimeError("Connection closed by peer\nC++ trace")

    exchange = GroupExchange(Broken(), 2, BoardStore(Board()))  # type: ignore[arg-type]
    with pytest.raises(RankError) as raised:
        exchange.gather(torch.ones(1))
    assert str(raised.value) == "the ranks do not exchange any more: Connection closed by peer"
    told: list[bool] = []
    ranks: Any = SimpleNamespace(wait_told=lambda: told.append(True))
    assert LeadingRunner(ranks, ranks).is_fatal(raised.value) and told == [True]
    assert LeadingRunner(ranks, ranks).is_fatal(ValueError("unlucky")) and told == [True]

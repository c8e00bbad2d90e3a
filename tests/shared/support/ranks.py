"""Ranks as threads of this process, which meet at a barrier wherever they exchange.

What they compute is what ranks in processes of their own compute: sums are taken from the same
shards in the same order.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from support.patience import PATIENCE
from torch import Tensor

from quire.engine.model.layers.parallel import World

T = TypeVar("T")


class Meeting:
    """Where the threads lay down what they have and take up what all have."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=PATIENCE)
        self.parts: list[Tensor] = [torch.empty(0)] * size


@dataclass(frozen=True)
class ThreadExchange:
    """One thread's way to the others."""

    rank: int
    meeting: Meeting

    def gather(self, x: Tensor) -> Tensor:
        """See Exchange."""
        meeting = self.meeting
        meeting.parts[self.rank] = x
        meeting.barrier.wait()
        parts = torch.stack(meeting.parts)
        meeting.barrier.wait()
        return parts


def as_ranks(size: int, run: Callable[[World], T]) -> list[T]:
    """What `run` returns on each rank; the first error of any is raised."""
    meeting = Meeting(size)

    def one(rank: int) -> T:
        try:
            return run(World(rank, size, ThreadExchange(rank, meeting)))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    causes = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if errors:
        raise (causes or errors)[0]
    return [future.result() for future in futures]

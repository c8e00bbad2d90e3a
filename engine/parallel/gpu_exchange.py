"""The exchange between ranks with a GPU each: NCCL, and a kernel where peers reach each other's
memory.

Invariant: the ranks agree whether the kernel is used, so all launch the same. What it cannot take
is gathered by NCCL and summed in rank order too. (NCCL's own reduction gives all ranks the same
bits, but adds in an order of its own.)
"""

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from quire.engine.errors import RankError
from quire.engine.parallel import symmetric
from quire.engine.parallel.nccl import Communicator

if TYPE_CHECKING:
    from quire.kernels.linear.all_reduce_norm import Mail

log = logging.getLogger(__name__)


class DeviceExchange:
    """See MailExchange. Ranks that are lost make it raise RankError."""

    def __init__(self, communicator: Communicator, inbox: symmetric.Inbox | None) -> None:
        self._communicator = communicator
        self._inbox = inbox

    def gather(self, x: Tensor) -> Tensor:
        """See Exchange."""
        return self._communicator.gather(x)

    def mail_for(self, partial: Tensor) -> "Mail | None":
        """See MailExchange."""
        if self._inbox is None or partial.dtype == torch.float32:
            return None
        return self._inbox.mail

    def check(self) -> None:
        """Raises RankError where a kernel has given up waiting for a rank."""
        if self._inbox is not None and self._inbox.late:
            raise RankError("the ranks do not exchange any more: one has not answered in time")


def over_nccl(
    store: Store,
    rank: int,
    size: int,
    device: torch.device,
    width: int | None,
    *,
    one_node: bool = True,
) -> DeviceExchange:
    """An exchange over NCCL; returns when all ranks have joined. width: numbers in a row of what is
    summed; None: the kernel is not used, as between nodes."""
    torch.cuda.set_device(device)
    communicator = Communicator(store, rank, size, device, one_node=one_node)
    reason = None if width is None else _obstacle(size, width)
    if width is None or reason is not None:
        if reason is not None and rank == 0:
            log.warning("the ranks exchange over NCCL alone, which is slower: %s", reason)
        return DeviceExchange(communicator, None)
    inbox: symmetric.Inbox | None = None
    with symmetric.rendezvous_store(store, rank, size) as place:
        # Nobody asks for the place any more: what comes may hold rank 0's interpreter.
        communicator.gather(torch.zeros(1, device=device)).sum().item()
        try:
            inbox = symmetric.Inbox(place, rank, size, device, width)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        everywhere = communicator.gather(torch.tensor([inbox is not None], device=device))
        agreed = bool(everywhere.all())
    if not agreed:
        log.warning("the ranks exchange over NCCL alone, which is slower: %s", reason or "a peer")
        inbox = None
    return DeviceExchange(communicator, inbox)


def _obstacle(size: int, width: int) -> str | None:
    """Why the kernel cannot be, known without trying."""
    if size & (size - 1):
        return f"{size} is no power of two"
    if width % 2:
        return f"rows of {width} numbers"
    if not symmetric.reachable(size):
        return "not all GPUs reach one another's memory"
    return None

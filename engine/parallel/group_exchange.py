"""The exchange of tensors over a torch process group.

With gloo, each rank listens on one interface (loopback, or the one over which the nodes reach one
another) on a port chosen by the kernel. The others learn the address over their channel to rank 0
(`store`), so there is no file, no name and no fixed port. A group of another backend with the same
gather can replace gloo.

Invariant: tensors are gathered as bytes, so any dtype works and no bit changes. The group's own
timeout is longer than the watchdog's bounds: a rank that is stopped for a while is waited for.
"""

from datetime import timedelta
from typing import cast

import torch
from torch import Tensor
from torch._C._distributed_c10d import ProcessGroup, ProcessGroupGloo, Store

from quire.engine.errors import RankError

_FOR_EVER = timedelta(days=30)
LOOPBACK = "127.0.0.1"


class GroupExchange:
    """See Exchange. Ranks that are lost make it raise RankError."""

    def __init__(self, group: ProcessGroup, size: int, store: Store) -> None:
        self._group = group
        self._size = size
        self._store = store  # the group knows it by its C++ part alone

    def gather(self, x: Tensor) -> Tensor:
        """See Exchange."""
        out = torch.empty((self._size, *x.shape), dtype=x.dtype, device=x.device)
        sent, taken = _bytes(x.contiguous()), _bytes(out)
        try:
            self._group._allgather_base(taken, sent).wait()
        except RuntimeError as error:
            cause = (str(error).splitlines() or [""])[0]
            raise RankError(f"the ranks do not exchange any more: {cause}") from error
        return out


def over_gloo(store: Store, rank: int, size: int, address: str = LOOPBACK) -> GroupExchange:
    """Returns when all ranks have found one another. address: of the interface to listen on.
    Raises RankError where that is none of this machine's."""
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = _FOR_EVER
    try:
        options._devices = [ProcessGroupGloo.create_device(hostname=address)]
    except RuntimeError as error:
        raise RankError(f"rank {rank} cannot listen on {address}, where it is reached") from error
    group = ProcessGroupGloo(store, rank, size, options)
    return GroupExchange(cast(ProcessGroup, group), size, store)


def _bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)

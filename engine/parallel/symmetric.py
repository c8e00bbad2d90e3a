"""Memory of each rank's GPU that its peers reach: the inboxes of the exchange kernel.

By torch's symmetric memory, which hands the handles out over a store. While it waits for another
rank's it may hold the interpreter, so the store cannot be rank 0's board, which answers by threads
of that interpreter: it is a file in a folder of rank 0's, which nobody else may look into and which
is gone when all have met.

Invariant: an inbox is EMPTY before any peer can write into it, and is never given back: a buffer
that the garbage collector frees while a graph is captured breaks the capture.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._C._distributed_c10d import (
    FileStore,
    ProcessGroup,
    Store,
    _register_process_group,
    _SymmetricMemory,
)

if TYPE_CHECKING:  # needs triton, which a machine without a GPU may lack
    from quire.kernels.linear.all_reduce_norm import Mail

_NAME = "quire"
_FOLDER = "quire-inboxes"  # what it is asked for by
_LIMIT = timedelta(seconds=60)  # of one rank's waiting for another that has failed


@contextlib.contextmanager
def rendezvous_store(store: Store, rank: int, size: int) -> Iterator[Store]:
    """A store in a file. All ranks must have met when rank 0 leaves. store: any, for the place."""
    if rank == 0:
        folder = tempfile.mkdtemp(prefix="quire-")  # its owner's alone
        store.set(_FOLDER, folder)
    else:
        folder = store.get(_FOLDER).decode()
    try:
        files = FileStore(str(Path(folder) / "store"), size)
        files.set_timeout(_LIMIT)
        yield files
    finally:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


class Inbox:
    """This rank's inboxes and the ways to all others'."""

    def __init__(
        self, store: Store, rank: int, size: int, device: torch.device, width: int
    ) -> None:
        """width: numbers a row. Returns when all ranks have come; raises RuntimeError where torch
        finds no way."""
        from quire.kernels.linear import all_reduce_norm

        os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
        group = ProcessGroup(store, rank, size)
        _register_process_group(_NAME, group)  # type: ignore[arg-type]
        _SymmetricMemory.set_group_info(_NAME, rank, size, store)
        one, two = all_reduce_norm.inbox_words(size, width)
        words = torch.int32
        self._memory: Tensor = _SymmetricMemory.empty_strided_p2p((one + two,), (1,), words, device)
        self._memory.fill_(all_reduce_norm.EMPTY.value)
        torch.cuda.synchronize(device)
        self._shared = _SymmetricMemory.rendezvous(self._memory, _NAME)
        self._flag = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        first = list(self._shared.buffer_ptrs)
        second = [address + one * all_reduce_norm.WORD for address in first]
        flag, rooms = self._flag.data_ptr(), all_reduce_norm.rooms(size)
        self.mail: Mail = all_reduce_norm.Mail(
            all_reduce_norm.Inboxes.new(rank, rooms[0], first, flag, device),
            all_reduce_norm.Inboxes.new(rank, rooms[1], second, flag, device),
        )
        torch.cuda.synchronize(device)

    @property
    def late(self) -> bool:
        """Whether a wait in a kernel was given up."""
        return bool(self._flag[0])


def reachable(size: int) -> bool:
    """Whether the first `size` GPUs of this machine reach one another's memory."""
    pairs = ((one, other) for one in range(size) for other in range(size) if one != other)
    return all(torch.cuda.can_device_access_peer(*pair) for pair in pairs)

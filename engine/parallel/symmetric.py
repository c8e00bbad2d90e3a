"""GPU memory of each rank that its peers can access: the inboxes of the exchange kernel.

It uses torch's symmetric memory, which distributes the handles over a store. While that waits for
another rank it may hold the interpreter, so the store cannot be rank 0's board, whose answers come
from threads of that interpreter. It is a file in a private folder of rank 0's, deleted when all
have met.

Invariant: an inbox is EMPTY before any peer can write into it, and is never freed: a buffer that
the garbage collector frees during a graph's capture breaks the capture.
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
    """A store in a file. All ranks must be done with it when rank 0 leaves. store: any other store,
    over which the file's place is sent."""
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
    """This rank's inboxes, and access to all others'."""

    def __init__(
        self, store: Store, rank: int, size: int, device: torch.device, width: int
    ) -> None:
        """width: numbers in a row. Returns when all ranks have arrived. Raises RuntimeError if
        torch cannot share the memory."""
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

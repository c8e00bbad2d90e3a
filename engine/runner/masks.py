"""Masks of the ids that a step's rows may sample, in pinned host memory at a fixed address.

Graphs read the masks where they were made: copying them to the device would take the host longer
than the kernel takes to read them.

Invariant: nothing is written while a sampler that reads it may be running (`launched`). Masks are
written where they are read (`room`); a room whose masks are still referenced is not handed out
again.
"""

import sys
from array import array
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.engine.scheduling.matching import Places, parted
from quire.engine.scheduling.plan import Mask

NO_MASK: Mask = b""  # of a row that may draw any id
# Two take turns; others may be held by rows that are in no step. One more is never given.
_ROOMS = 4


class MaskTable:
    """of: [R] int32, which mask each row of the logits has, -1 for none; words: [M, ceil(V / 32)]
    int32, the masks."""

    def __init__(self, rows: int, vocab_size: int, device: torch.device) -> None:
        """rows: that sample in one step, at most."""
        self._rows, self._width = rows, -(-vocab_size // 32)
        self._device = device
        self._near = torch.empty(rows, dtype=torch.int32, device=device)  # of `of`
        self._given: _Room | None = None  # since the last `put`
        self._read: Callable[[], object] | None = None  # waits until what was written last is

    @cached_property
    def of(self) -> Tensor:
        return self._memory(self._rows).fill_(-1)

    @cached_property
    def _numbers(self) -> memoryview:
        return self.of.numpy().data

    def rows(self, count: int) -> Tensor:
        """The first rows of `of`, in stream order: on a GPU a copy, since each program of a kernel
        reads its row's entry."""
        if self._device.type != "cuda":
            return self.of[:count]
        return self._near[:count].copy_(self.of[:count], non_blocking=True)

    @cached_property
    def words(self) -> Tensor:
        return self._memory((_ROOMS + 1) * self._rows, self._width)

    def _memory(self, *shape: int) -> Tensor:
        on_host = self._device if self._device.type == "meta" else torch.device("cpu")
        pinned = self._device.type == "cuda"
        return torch.empty(shape, dtype=torch.int32, device=on_host, pin_memory=pinned)

    @cached_property
    def _rooms(self) -> "list[_Room]":
        numbers = self.words.numpy()
        firsts = range(0, len(numbers), self._rows)
        return [_Room(first, numbers[first : first + self._rows]) for first in firsts]

    def room(self, count: int) -> Places:
        """Memory for `count` masks of the next step. A mask is valid while it is referenced itself;
        references to slices of it do not count."""
        free = (room for room in self._rooms[:_ROOMS] if room.is_free())
        self._given = next(free, None) if count <= self._rows else None
        if self._given is None:
            return parted(memoryview(bytearray(4 * self._width * count)), count)
        self._wait()
        return self._given.take(count)

    def put(self, masks: Sequence[Mask]) -> None:
        """Say which mask each row of a step has, or NO_MASK."""
        room, self._given = self._given, None
        places = [] if room is None else room.find(masks)
        self._wait()
        if room is None or room.taken + places.count(None) > self._rows:
            room = self._rooms[_ROOMS]
            room.take(0)
            places = room.find(masks)
        found = zip(masks, places, strict=True)
        of = [room.put(mask) if place is None else place for mask, place in found]
        self._numbers[:] = array("i", of + [-1] * (self._rows - len(of)))

    def launched(self, read: Callable[[], object]) -> None:
        """The sampler that reads them is enqueued. read: waits for its end, and fetches what came
        of it."""
        self._read = read

    def _wait(self) -> None:
        read, self._read = self._read, None
        if read is not None:
            read()


class _Room:
    """The masks of one step."""

    def __init__(self, first: int, words: npt.NDArray[np.int32]) -> None:
        """first: their place in the table; words: [R, W] int32."""
        self._first, self._words = first, words
        self._whole, self._masks = parted(words.reshape(-1).view(np.uint8).data, len(words))
        self._places = {id(mask): place for place, mask in enumerate(self._masks, first)}
        self._places[id(NO_MASK)] = -1
        self.taken = 0
        self._unheld = self._references()

    def _references(self) -> int:
        """The number of references to all masks in it."""
        return sum(map(sys.getrefcount, self._masks))

    def is_free(self) -> bool:
        """Whether no mask in it is held."""
        return self._references() == self._unheld

    def take(self, count: int) -> Places:
        """Hand out the memory, to be written."""
        self.taken = count
        return self._whole[: count * self._words.strides[0]], self._masks[:count]

    def find(self, masks: Sequence[Mask]) -> list[int | None]:
        """The places in the table of masks that are in this room."""
        return list(map(self._places.get, map(id, masks)))

    def put(self, mask: Mask) -> int:
        """Copy one from elsewhere; returns its place in the table."""
        self._words[self.taken] = np.frombuffer(mask, np.int32)
        self.taken += 1
        return self._first + self.taken - 1

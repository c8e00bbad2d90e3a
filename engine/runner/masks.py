"""Which ids a step's rows may draw: bits on the device, at one address, so that graphs read them.

Invariant: on the device a step's masks stand until the next step's are copied, behind the sampler
that read them. On the host they are made where the copy reads them (`room`), and whoever holds one
of a room's masks keeps it from being given again.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch

from quire.engine.scheduling.matching import Places, parted
from quire.engine.scheduling.plan import Mask

_ROOMS = 4  # on the host: two take turns, others are held by rows that are in no step


class MaskTable:
    """of: [R] int32, which mask each row of the logits has, -1 for none; words: [R, ceil(V / 32)]
    int32, the masks."""

    def __init__(self, rows: int, vocab_size: int, device: torch.device) -> None:
        """rows: that sample in one step, at most."""
        self._rows, self._width = rows, -(-vocab_size // 32)
        size = rows * (1 + self._width)
        self._target = torch.full((size,), -1, dtype=torch.int32, device=device)
        self.of = self._target[:rows]
        self.words = self._target[rows:].view(rows, self._width)
        self._rooms: list[_Room] = []
        self._given: _Room | None = None  # since the last upload

    def room(self, count: int) -> Places:
        """For so many masks of the next step: a part is good while it is held, itself and no part
        of it."""
        self._given = self._free() if count <= self._rows else None
        if self._given is None:
            return parted(memoryview(bytearray(4 * self._width * count)), count)
        return self._given.take(count)

    def upload(self, masks: Sequence[tuple[int, Mask]]) -> None:
        """Enqueue the copy of a step's masks, each with the row that it is of."""
        room, self._given = self._given, None
        places = [None if room is None else room.places.get(id(mask)) for _, mask in masks]
        if room is None or room.taken + places.count(None) > self._rows:
            room = self._free() or self._new()
            room.take(0)
            places = [None] * len(masks)
        of = [-1] * self._rows
        for (row, mask), place in zip(masks, places, strict=True):
            of[row] = room.put(mask) if place is None else place
        room.of[:] = of
        room.copy_to(self._target)

    def _free(self) -> "_Room | None":
        for room in self._rooms:
            if room.is_free():
                return room
        if len(self._rooms) == _ROOMS:
            return None
        self._rooms.append(self._new())
        return self._rooms[-1]

    def _new(self) -> "_Room":
        return _Room(self._rows, self._width, pinned=self._target.device.type == "cuda")


class _Room:
    """On the host, what is copied: see MaskTable."""

    def __init__(self, rows: int, width: int, *, pinned: bool) -> None:
        self._host = torch.empty(rows * (1 + width), dtype=torch.int32, pin_memory=pinned)
        self._numbers = self._host.numpy()
        self.of = self._numbers[:rows]
        self._words = self._numbers[rows:].reshape(rows, width)
        self._whole, self._masks = parted(self._words.reshape(-1).view(np.uint8).data, rows)
        self.places = {id(mask): place for place, mask in enumerate(self._masks)}
        self.taken = 0  # rows of the words
        self._copied = torch.cuda.Event() if pinned else None
        self._unheld = self._references()

    def _references(self) -> int:
        """To all masks in it."""
        return sum(map(sys.getrefcount, self._masks))

    def is_free(self) -> bool:
        """Whether no mask in it is held."""
        return self._references() == self._unheld

    def take(self, count: int) -> Places:
        """For masks to be written to, once the copy that last read it has ended."""
        if self._copied is not None:
            self._copied.synchronize()
        self.taken = count
        return self._whole[: count * self._words.strides[0]], self._masks[:count]

    def put(self, mask: Mask) -> int:
        """Copy one from elsewhere; returns its row."""
        self._words[self.taken] = np.frombuffer(mask, np.int32)
        self.taken += 1
        return self.taken - 1

    def copy_to(self, target: torch.Tensor) -> None:
        """Enqueue the copy of what is taken."""
        size = len(self.of) + self.taken * self._words.shape[1]
        target[:size].copy_(self._host[:size], non_blocking=True)
        if self._copied is not None:
            self._copied.record()

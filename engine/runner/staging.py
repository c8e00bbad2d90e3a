"""One upload a step: named arrays packed into a pinned buffer, copied to the device at once.

Invariant: a pinned buffer is not written again before the copy that reads it has ended (`Ring`).
There is one more of them than steps can be in flight. On the device there is one buffer,
overwritten in stream order: arrays that are put in the same order with the same sizes lie at the
same addresses in every step, so a captured graph may read them, provided that they come first and
end within the buffer's capacity. What comes behind may be of any size. What was put before `fix`
lies ahead of that, and ends where the rest begins: so it too has one address for each size.

The copy itself may be captured. Then it has one size, and one of two host buffers, and its event is
recorded behind the step: after a rest that takes long, and the device would wait for it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

KEPT_BUFFERS = 2  # of captured copies: before a step is planned, the one before the last has ended
KEPT_BYTES = 48 << 10  # of a captured copy: the prompt tokens of any captured step, and more
_ALIGN = 8
_PADDING = tuple(bytes(count) for count in range(_ALIGN))
_DTYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}
_CODES = {"i": torch.int32, "q": torch.int64, "f": torch.int32}
Place = tuple[int, int, torch.dtype, tuple[int, ...]]  # first byte, end, dtype, shape
Field = tuple[str, str, tuple[int, ...]]  # an array's name, how it is packed, its shape


@dataclass(slots=True)
class Steps:
    """Counts the steps whose results were requested, and those whose results have arrived. Work
    that was enqueued before results were requested has ended once they have arrived: everything
    runs on one stream."""

    asked: int = 0
    come: int = 0


class Ring:
    """Pinned host buffers used in turn, each with the event of the copy that reads it. Querying an
    event takes long after a pause, so it is skipped if the results of a later step have arrived."""

    def __init__(self, device: torch.device, count: int, capacity: int, steps: Steps) -> None:
        """capacity: bytes of each; one that is too small is replaced."""
        self._steps = steps
        self._next_step = [0] * count  # of each, the first whose results were to be asked for then
        self._pinned = device.type == "cuda"
        self._capacity = capacity
        self._buffers = [self._new(capacity) for _ in range(count)]
        self._events: list[torch.cuda.Event | None] = [None] * count
        self._turn = 0

    def _new(self, size: int) -> tuple[Tensor, memoryview]:
        """A buffer, and how the host writes it soonest."""
        buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        return buffer, buffer.numpy().data

    @property
    def turn(self) -> int:
        """Which buffer came last."""
        return self._turn

    def next(self, data: bytes, size: int = 0) -> Tensor:
        """The next buffer, writable once the copy that last read it has ended: the data, and the
        space after it up to `size` bytes."""
        size = max(size, len(data))
        self._turn = (self._turn + 1) % len(self._buffers)
        event = self._events[self._turn]
        if event is not None and self._next_step[self._turn] > self._steps.come:
            event.synchronize()
        self._next_step[self._turn] = self._steps.asked + 1
        if size > self._capacity:
            self._capacity = 2 * size
        buffer, view = self._buffers[self._turn]
        if buffer.numel() < size or not self._pinned:
            # On the CPU tensors are views of the buffer, so each step gets a new one.
            buffer, view = self._new(self._capacity if self._pinned else size)
            self._buffers[self._turn] = buffer, view
        view[: len(data)] = data
        return buffer if buffer.numel() == size else buffer[:size]

    def copied(self) -> None:
        """The copy of the buffer that came last is enqueued."""
        if self._pinned:
            event = self._events[self._turn] or torch.cuda.Event()
            event.record()
            self._events[self._turn] = event


class Record:
    """Arrays of known sizes, packed at once: one by one they take several times as long."""

    def __init__(self, *fields: Field) -> None:
        """How one is packed: as struct.pack has it, all its codes of the kind of the last one; "f"
        for the bits of float32."""
        self.places: dict[str, Place] = {}
        form = ["<"]
        size = 0
        for name, packing, shape in fields:
            end = size + struct.calcsize(f"<{packing}")
            self.places[name] = size, end, _CODES[packing[-1]], shape
            size = -(-end // _ALIGN) * _ALIGN
            form.append(f"{packing}{size - end}x")
        self.pack = struct.Struct("".join(form)).pack
        self.size = size


class Staging:
    """put() arrays, upload() once, get() them as device tensors until the next begin()."""

    def __init__(
        self,
        device: torch.device,
        ring: int = 4,
        capacity: int = 1 << 16,
        ahead: int = 0,
        steps: Steps | None = None,
    ) -> None:
        """ahead: bytes that may be put before `fix`, a multiple of 8. steps: on the same stream."""
        steps = steps or Steps()
        self._device = device
        self._pinned = device.type == "cuda"
        self._ring = Ring(device, ring, capacity, steps)
        self._kept_bytes = min(KEPT_BYTES, capacity)
        self._kept = Ring(device, KEPT_BUFFERS, self._kept_bytes, steps)
        self._filled: Tensor | None = None  # the buffer whose copy, or event, is still to come
        self._ahead = ahead
        self._fixed = 0  # bytes that were put before `fix`
        self._target = torch.empty(ahead + capacity, dtype=torch.uint8, device=device)
        self._parts: list[bytes] = []  # of the upload
        self._size = 0  # of those, in bytes
        self._places: dict[str, Place] = {}  # of each array in the upload, but
        self._records: list[tuple[int, Record]] = []  # those in a record: where it begins
        self._heads: dict[int, Tensor] = {}  # what a captured copy writes, by where it begins
        self._head = self._whole = self._target  # see _copy

    def begin(self) -> None:
        """Start a step's upload; the last one's tensors must not be used any more."""
        self._fixed = self._size = 0
        self._parts.clear()
        self._places.clear()
        self._records.clear()

    def put(self, name: str, array: npt.NDArray[Any]) -> None:
        """Add an array (int32, int64 or float32) under a name that is new in this step."""
        self.put_bytes(name, array.tobytes(), _DTYPES[array.dtype], array.shape)

    def put_ints(
        self,
        name: str,
        values: Sequence[int],
        code: str = "i",
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """The same for a few integers, which numpy would take longer to convert. code: "i" for
        int32, "q" for int64."""
        data = struct.pack(f"{len(values)}{code}", *values)
        self.put_bytes(name, data, _CODES[code], shape or (len(values),))

    def put_bytes(self, name: str, data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """The same for numbers that are bytes already."""
        begin, end = self._size, self._size + len(data)
        self._places[name] = (begin, end, dtype, shape)
        self._size = -(-end // _ALIGN) * _ALIGN  # joined later: a part copied takes six times
        self._parts += (data, _PADDING[self._size - end])

    def put_record(self, record: Record, values: Sequence[float]) -> None:
        """The same for the arrays of a record, whose values follow one another."""
        self._records.append((self._size, record))
        self._parts.append(record.pack(*values))
        self._size += record.size

    def fix(self) -> None:
        """What is put from here on is at the addresses that it has in a step that has put nothing
        before."""
        self._fixed = self._size

    def upload(self) -> bool:
        """Copy all that was put to the device; returns before the copy has ended. False: nothing
        was put."""
        if not self._parts:
            return False
        host = self._ring.next(b"".join(self._parts))
        self._head, self._whole = self._copy(host)
        self._ring.copied()
        return True

    def fill(self) -> int | None:
        """Get all that was put ready for `copy`; in which buffer. None: it is too large."""
        if self._size > self._kept_bytes:
            return None
        self._filled = self._kept.next(b"".join(self._parts), self._kept_bytes)
        head = self._heads.get(begin := self._ahead - self._fixed)
        if head is None:
            head = self._heads[begin] = self._target[begin : begin + self._kept_bytes]
        self._head = self._whole = head
        return self._kept.turn

    def copy(self) -> None:
        """Upload what `fill` prepared, always with the same number of bytes after it. May be
        captured."""
        assert self._filled is not None
        if self._pinned:
            self._head.copy_(self._filled, non_blocking=True)
        else:
            self._head = self._whole = self._filled

    def launched(self) -> None:
        """The upload, and everything that reads it, has been enqueued."""
        if self._filled is not None:
            self._kept.copied()
            self._filled = None

    def _copy(self, host: Tensor) -> tuple[Tensor, Tensor]:
        """Enqueue the copy. Returns what lies at the fixed address, and the whole.

        An upload too large for the device's buffer gets one of its own; its head is in both places,
        since a graph looks for it where it always was.
        """
        if not self._pinned:
            return host, host
        room = self._target[self._ahead - self._fixed :]
        if host.numel() <= room.numel():
            target = room[: host.numel()].copy_(host, non_blocking=True)
            return target, target
        whole = host.to(self._device, non_blocking=True)
        return room.copy_(whole[: room.numel()]), whole

    def get(self, name: str) -> Tensor:
        """The array put under this name, on the device. Of a replayed step few are asked for."""
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        return found

    def find(self, name: str) -> Tensor | None:
        """The same, or None if nothing was put."""
        place = self._place(name)
        if place is None:
            return None
        begin, end, dtype, shape = place
        source = self._head if end <= self._head.numel() else self._whole
        tensor = source[begin:end].view(dtype)
        return tensor if len(shape) == 1 else tensor.view(shape)

    def _place(self, name: str) -> Place | None:
        if (place := self._places.get(name)) is not None:
            return place
        for first, record in self._records:
            if name in record.places:
                begin, end, dtype, shape = record.places[name]
                return first + begin, first + end, dtype, shape
        return None

"""One upload a step: named arrays packed into a pinned buffer, copied to the device at once.

Invariant: a pinned buffer is not written again before the copy that reads it has ended. There is a
ring of them, each with its event, one more than steps can be in flight. On the device there is one
buffer, overwritten in stream order: arrays that are put in the same order with the same sizes lie
at the same addresses in every step, so a captured graph may read them, provided that they come
first and end within the buffer's capacity. What comes behind may be of any size.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGN = 8
_DTYPES = {"int32": torch.int32, "int64": torch.int64, "float32": torch.float32}


class Staging:
    """put() arrays, upload() once, get() them as device tensors until the next begin()."""

    def __init__(self, device: torch.device, ring: int = 4, capacity: int = 1 << 16) -> None:
        self._device = device
        self._pinned = device.type == "cuda"
        self._capacity = capacity
        self._buffers = [self._new_buffer() for _ in range(ring)]
        self._events: list[torch.cuda.Event | None] = [None] * ring
        self._turn = 0
        self._target = torch.empty(capacity, dtype=torch.uint8, device=device)
        self._arrays: list[tuple[str, npt.NDArray[Any]]] = []
        self._tensors: dict[str, Tensor] = {}

    def _new_buffer(self) -> Tensor:
        return torch.empty(self._capacity, dtype=torch.uint8, pin_memory=self._pinned)

    def begin(self) -> None:
        """Start a step's upload; the last one's tensors are no longer to be used."""
        self._arrays.clear()
        self._tensors.clear()

    def put(self, name: str, array: npt.NDArray[Any]) -> None:
        """Add an array (int32, int64 or float32) under a name that is new in this step."""
        self._arrays.append((name, np.ascontiguousarray(array)))

    def upload(self) -> None:
        """Copy all that was put to the device; returns before the copy has ended."""
        if not self._arrays:
            return
        total = sum(-(-array.nbytes // _ALIGN) * _ALIGN for _, array in self._arrays)
        host = self._writable(total)
        raw = host.numpy()
        places = []
        offset = 0
        for name, array in self._arrays:
            end = offset + array.nbytes
            raw[offset:end] = array.view(np.uint8).reshape(-1)
            places.append((name, offset, end, array))
            offset += -(-array.nbytes // _ALIGN) * _ALIGN
        head, rest = self._copy(host[:total])
        if self._pinned:
            event = torch.cuda.Event()
            event.record()
            self._events[self._turn] = event
        for name, begin, end, array in places:
            source = head if end <= head.numel() else rest
            view = source[begin:end].view(_DTYPES[array.dtype.name])
            self._tensors[name] = view.view(array.shape)

    def _copy(self, host: Tensor) -> tuple[Tensor, Tensor]:
        """Enqueue the copy. Returns what lies at the fixed address, and the whole.

        An upload too large for the device's buffer gets one of its own; its head is in both places,
        since a graph looks for it where it always was.
        """
        if not self._pinned:
            return host, host
        if host.numel() <= self._target.numel():
            target = self._target[: host.numel()].copy_(host, non_blocking=True)
            return target, target
        whole = host.to(self._device, non_blocking=True)
        return self._target.copy_(whole[: self._target.numel()]), whole

    def _writable(self, size: int) -> Tensor:
        """The next buffer of the ring, once the copy that last read it has ended."""
        self._turn = (self._turn + 1) % len(self._buffers)
        event = self._events[self._turn]
        if event is not None:
            event.synchronize()
        if size > self._capacity:
            self._capacity = 2 * size
        if self._buffers[self._turn].numel() < size or not self._pinned:
            # On the CPU tensors are views of the buffer, so each step gets a new one.
            self._buffers[self._turn] = (
                self._new_buffer() if self._pinned else torch.empty(size, dtype=torch.uint8)
            )
        return self._buffers[self._turn]

    def get(self, name: str) -> Tensor:
        """The array put under this name, on the device."""
        return self._tensors[name]

    def find(self, name: str) -> Tensor | None:
        """The same, or None if nothing was put."""
        return self._tensors.get(name)

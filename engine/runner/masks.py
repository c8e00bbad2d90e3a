"""Which ids a step's rows may draw: bits on the device, at one address, so that graphs read them.

Invariant: on the device a step's masks stand until the next step's are copied, behind the sampler
that read them.
"""

from collections.abc import Sequence

import torch

from quire.engine.runner.staging import Ring

_RING = 2  # host buffers: steps with masks are launched one at a time

Mask = bytes  # whole words of 4 bytes, a bit for each id: id i at bit i % 8 of byte i // 8


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
        self._ring = Ring(device, _RING, capacity=4 * (rows + self._width))

    def upload(self, masks: Sequence[tuple[int, Mask]]) -> None:
        """Enqueue the copy of a step's masks, each with the row that it is of."""
        size = self._rows + len(masks) * self._width
        host = self._ring.next(4 * size).view(torch.int32)
        numbers = host.numpy()
        numbers[: self._rows] = -1
        octets, begin, length = numbers.data.cast("B"), 4 * self._rows, 4 * self._width
        for at, (row, mask) in enumerate(masks):
            numbers[row] = at
            octets[begin : begin + length] = mask
            begin += length
        self._target[:size].copy_(host, non_blocking=True)
        self._ring.copied()

"""Parameters of FP8 weights, and how they are filled: stored as FP8, or converted while loading."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.engine.errors import ConfigError
from quire.engine.model.layers.parallel import length
from quire.engine.model.layers.placement import Placement
from quire.kernels.reference import quantize_blocks
from quire.kernels.weight import Weight

BLOCK = 128
SCALE = "_scale_inv"  # behind the name of a weight: that of its scales


@dataclass(frozen=True, slots=True)
class QuantizingPlacement(Placement):
    """A weight stored wide and held as FP8. target: e4m3 [n, k]; scale: fp32, of its blocks."""

    scale: Tensor

    @property
    def nbytes(self) -> int:
        return int(self.target.nbytes + self.scale.nbytes)

    def chunks(self, most: int) -> Iterator[tuple[int, int]]:
        """Pieces of whole blocks."""
        step = max(BLOCK, most // max(1, self.row_numbers) // BLOCK * BLOCK)
        for first in range(self.rows.start, self.rows.stop, step):
            yield first, min(first + step, self.rows.stop)

    def clear(self) -> None:
        """The scales too."""
        super(QuantizingPlacement, self).clear()  # slots: no bare super
        self.scale.zero_()

    def put_taken(self, first: int, part: Tensor) -> None:
        """Quantize rows that begin with a block: [m, k]."""
        begin = first - self.rows.start
        assert begin % BLOCK == 0
        made = quantize_blocks(part)
        assert made.scale is not None
        self.target[begin : begin + part.shape[0]].copy_(made.data)
        self.scale[begin // BLOCK : begin // BLOCK + made.scale.shape[0]].copy_(made.scale)


def new_fp8(*shape: int, device: torch.device) -> Weight:
    """An unfilled parameter. shape: [N, K], or with the experts before: [E, N, K]."""
    *experts, rows, columns = shape
    blocks = (*experts, -(-rows // BLOCK), -(-columns // BLOCK))
    data = torch.empty(shape, dtype=torch.float8_e4m3fn, device=device)
    return Weight(data, torch.empty(blocks, dtype=torch.float32, device=device))


def check_begins_block(begin: int, module: str) -> None:
    """Raises ConfigError where a matrix begins within a block of a merged weight."""
    if begin % BLOCK:
        raise ConfigError(
            f"{module}: begins at row {begin} of a merged FP8 weight: the matrices before it must "
            f"have multiples of {BLOCK} rows"
        )


def part_of(weight: Weight, begin: int, end: int, module: str) -> Weight:
    """Rows begin to end - 1 of a merged weight: one of its matrices. Raises ConfigError where it
    begins within a block."""
    check_begins_block(begin, module)
    assert weight.scale is not None
    scale = weight.scale[begin // BLOCK : -(-end // BLOCK)]
    return Weight(weight.data[begin:end], scale)


def fp8_placements(
    module: str, shape: tuple[int, int], held: Weight, rows: slice, cols: slice, *, made: bool
) -> list[Placement]:
    """The placements of an FP8 matrix of a module. shape: as stored; rows, cols: the part that is
    taken; made: whether it is stored in a wider dtype. Raises ConfigError if a part cuts through a
    block."""
    name = f"{module}.weight"
    assert held.scale is not None
    for what, part, whole in (("rows", rows, shape[0]), ("columns", cols, shape[1])):
        if part.start % BLOCK or (part.stop % BLOCK and part.stop != whole):
            raise ConfigError(
                f"{module}: {length(part)} of {whole} {what} a rank: FP8 weights can be shared out "
                f"only in multiples of {BLOCK}"
            )
    if made:
        return [QuantizingPlacement(name, shape, held.data, rows, cols, held.scale)]
    blocks = (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK))
    scale = Placement(name + SCALE, blocks, held.scale, _blocks(rows), _blocks(cols))
    return [Placement(name, shape, held.data, rows, cols), scale]


def _blocks(part: slice) -> slice:
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))

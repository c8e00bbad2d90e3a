"""Which kernel computes a product of an FP8 weight: a rule by the weight's shape and the rows.

Invariant: every (shape, rows) has an answer that runs, and it depends on the rows by
`tuning.row_class` alone, which is how warm-up tells kernels apart.
"""

from dataclasses import dataclass, replace

from quire.kernels.linear import fp8_gemv, fp8_library, tuning
from quire.kernels.support import HOPPER_SHARED


@dataclass(frozen=True)
class Fp8Gemv:
    """The kernel of fp8_gemv.py, for one row: weight rows at a time, warps a program, and tiles of
    so many rows a program."""

    block_n: int
    warps: int
    turns: int = 1


@dataclass(frozen=True)
class Fp8Tile:
    """The kernel of fp8_tiles.py. swap: weights are the M side of the instruction; in_turn: one
    program sums the shares of K one after another, else each has a program."""

    block_m: int
    block_n: int
    swap: bool
    stages: int
    warps: int
    split: int = 1
    in_turn: bool = False

    def stage_bytes(self, silu: bool) -> int:
        """Shared memory of one stage: x and the weights, 128 columns of 8 bits each, and scales."""
        return (self.block_m + self.block_n * (2 if silu else 1)) * 128 + 4 * self.block_m


@dataclass(frozen=True)
class Fp8Library:
    """torch's own product of scaled blocks (cuBLAS), with what stands around it as kernels of their
    own. It is there on some cards alone: `fp8_library.available`."""


@dataclass(frozen=True)
class Fp8Hopper:
    """The kernel of fp8_hopper.py: tiles with K in halves. It is there on sm_90 alone, by one
    version of Triton: `fp8_linear.has_hopper`."""


Fp8Variant = Fp8Gemv | Fp8Tile | Fp8Library | Fp8Hopper
_FULL = 132  # programs that keep a large card busy
_MAX_SPLIT = 4
_MAX_HELD = 80  # registers a thread, of one row: some 125 in all
_LITTLE_HELD = 40  # some 80 in all
_SHORT, _MANY_ROWS = 2048, 4 * 6 * _FULL  # K, of more rows than smaller programs hold at once
_FEW = 16  # rows, whose shares of K are those of all in exact mode
_LEAST = 64  # programs of fp8_hopper.py's kernel, to be faster
_LIBRARY_ROWS, _LIBRARY_ROWS_WIDE = 256, 128  # buckets from which the library is faster; N > K


def choose(
    n: int,
    k: int,
    rows: int,
    silu: bool,
    shared: int = HOPPER_SHARED,
    *,
    library: bool = False,
    hopper: bool = False,
) -> Fp8Variant:
    """The variant for a weight [n, k] (with silu: gate and up rows together) and so many rows.

    shared: bytes of shared memory that a program may have (`support.shared_bytes`). library:
    whether torch's product is there (`fp8_library.available`); hopper: whether the kernel of
    fp8_hopper.py is (`fp8_linear.has_hopper`)."""
    bucket = tuning.row_class(rows)
    if hopper and not silu and _in_halves(n, k, bucket):
        return Fp8Hopper()
    least = _LIBRARY_ROWS_WIDE if n > k else _LIBRARY_ROWS
    if library and bucket >= least and n % 16 == 0 and k % fp8_library.STEP == 0:
        return Fp8Library()
    if bucket == 1 and k % 16 == 0:
        short = k <= _SHORT and n > _MANY_ROWS and not silu
        for block_n, warps in ((4, 4) if short else (4, 8), (2, 8), (1, 8), (1, 16)):
            held = fp8_gemv.held(k, block_n, warps, silu)
            if held <= _MAX_HELD:
                at_once = 24 if held <= _LITTLE_HELD else 16
                return Fp8Gemv(block_n, warps, turns(n, block_n, warps, silu, at_once))
    return _fitting(_tile(n, k, bucket, silu), silu, shared)


def _in_halves(n: int, k: int, bucket: int) -> bool:
    """Whether the tiles of fp8_hopper.py, of 128 x 128, fill half a card or more in halves of K,
    which have blocks in pairs, and all run at once."""
    if n > k or n % 128 or k % 512 or bucket > tuning.ROW_BUCKETS[-1]:
        return False
    return _LEAST <= 2 * (n // 128) * (bucket // 128) <= _FULL


def exact(n: int, k: int, rows: int, silu: bool, shared: int = HOPPER_SHARED) -> Fp8Tile:
    """The variant in exact mode: always a tile, and K in the shares that few rows take. Many rows
    fill a card without: there a program sums them in turn."""
    bucket = tuning.row_class(rows)
    split, tile = _tile(n, k, _FEW, silu).split, _tile(n, k, bucket, silu)
    tiles = -(-n // tile.block_n) * -(-bucket // tile.block_m)
    if split > 1 and bucket > 64:  # 8 warps: sums of shares take registers
        many = bucket > tuning.ROW_BUCKETS[-1] or 2 * tiles >= _FULL
        tile = replace(tile, in_turn=many, warps=8)
    return _fitting(replace(tile, split=split), silu, shared)


def _fitting(tile: Fp8Tile, silu: bool, shared: int) -> Fp8Tile:
    """The same with as many stages as there is room for."""
    return replace(tile, stages=max(1, min(tile.stages, shared // tile.stage_bytes(silu))))


def turns(n: int, block_n: int, warps: int, silu: bool, at_once: int) -> int:
    """Tiles a program, if all programs are to run at once. at_once: warps of a multiprocessor."""
    tiles = -(-n // ((2 if silu else 1) * block_n))
    return -(-tiles // (_FULL * max(1, at_once // warps)))


def _tile(n: int, k: int, bucket: int, silu: bool) -> Fp8Tile:
    """Up to 32 rows weights are the M side of the instruction; above, rows are, since a thread then
    holds few of their scales. K is split until the card is full. As an H200 likes it best."""
    if bucket <= 32:
        tile = Fp8Tile(max(16, bucket), 128, swap=True, stages=4, warps=4)
    elif silu:
        tile = Fp8Tile(64, 128, swap=False, stages=4, warps=8)
    elif bucket <= 64:
        tile = Fp8Tile(64, 64, swap=False, stages=6, warps=4)
    else:
        tile = Fp8Tile(64, 128, swap=False, stages=4, warps=4)
    if silu or bucket > tuning.ROW_BUCKETS[-1]:  # full without, or of any number of rows
        return tile
    tiles = -(-n // tile.block_n) * -(-bucket // tile.block_m)
    most = _MAX_SPLIT if bucket <= 64 else 2  # adding up four of 64 x 128 takes more registers
    split = 1
    while split < most and tiles * split < _FULL and k >= 2 * split * 512:
        split *= 2
    return replace(tile, split=split)

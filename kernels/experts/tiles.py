"""How the products of experts are launched: a pure function of the rows, the mixture and the card.

Invariant: no result depends on it. Every product is summed over K in order, whatever the tiles, so
a row's result is the same beside any other rows.
"""

from dataclasses import dataclass, replace

import torch

from quire.kernels.support import HOPPER_SHARED, HOPPER_TRITON, has_gluon

UNSORTED_ROWS = 4  # up to which most experts are met once, and every pair reads its own weights
_ALONE = 128  # rows, from which a dependent launch loses
_LARGE_SHARED = 128 << 10  # bytes, below which accumulators are no wgmma's and must be smaller
GROUP_ROWS = 64  # of a tile of hopper_fp8.py, that one group of warps sums
GROUPS = {True: 2, False: 3}  # of a tile of gates and ups there, and of downs
TRITON = HOPPER_TRITON[:1]  # versions by which its code keeps all that it needs in registers
_PAIRS = (8, 24, 96)  # mean pairs an expert, up to which a tile takes 16, 32 or 64 rows


@dataclass(frozen=True)
class Tile:
    """One product. block_n: columns of the result; swap: weights are the M side of the
    instruction; boxed: weights come through descriptors (TMA) where the card has them; turns: of
    downs of FP8, times so many columns that a program makes one after another."""

    block_n: int
    block_k: int
    stages: int
    warps: int
    swap: bool
    boxed: bool = False
    turns: int = 1

    def stage_bytes(self, block_m: int, matrices: int, itemsize: int) -> int:
        """Shared memory of one stage. matrices: 2 where gate and up are taken together."""
        return (block_m + matrices * self.block_n) * self.block_k * itemsize

    def fitting(self, block_m: int, matrices: int, itemsize: int, shared: int) -> "Tile":
        """The same with as many stages as fit; narrower if two do not fit."""
        stage = self.stage_bytes(block_m, matrices, itemsize)
        if 2 * stage > shared and self.block_k > 32 and itemsize > 1:
            narrower = replace(self, block_k=self.block_k // 2)
            return narrower.fitting(block_m, matrices, itemsize, shared)
        return replace(self, stages=max(2, min(self.stages, shared // stage)))


@dataclass(frozen=True)
class Mix:
    """How both products are launched. block_m: pairs of token and expert a program takes, all of
    one expert; is_sorted: pairs are put in order of their experts, otherwise a program has one;
    specialised: by warps of their own (hopper_fp8.py), whose tiles are as high as `GROUPS` says."""

    is_sorted: bool
    block_m: int
    gate_up: Tile
    down: Tile
    specialised: bool = False

    @property
    def down_m(self) -> int:
        """Pairs a program of downs takes."""
        return GROUPS[False] * GROUP_ROWS if self.specialised else self.block_m


# What won on an H200 at the shape 30B-A3B (tools/tune_experts.py), by the class of the rows.
_TILES = {
    1: Mix(False, 16, Tile(64, 256, 3, 4, True, True), Tile(128, 128, 3, 4, True, True)),
    16: Mix(True, 16, Tile(64, 256, 3, 4, True, True), Tile(128, 128, 3, 4, True, True)),
    32: Mix(True, 32, Tile(128, 128, 3, 4, True, True), Tile(128, 64, 4, 4, True, True)),
    64: Mix(True, 64, Tile(128, 64, 4, 8, True), Tile(128, 64, 3, 8, False)),
    128: Mix(True, 128, Tile(128, 64, 4, 8, False, True), Tile(256, 64, 4, 8, False)),
}
_WIDE = Tile(32, 32, 2, 4, swap=False)  # in fp32, which tensor cores do not take
# The same for e4m3 weights, where a step is a group of 128 columns.
_FP8_TILES = {
    1: Mix(False, 16, Tile(128, 128, 5, 4, True, True), Tile(64, 128, 8, 4, True)),
    16: Mix(True, 16, Tile(128, 128, 3, 4, True, True), Tile(128, 128, 3, 4, True, True)),
    32: Mix(True, 32, Tile(128, 128, 3, 4, True, True), Tile(128, 128, 3, 4, True, True)),
    64: Mix(True, 64, Tile(128, 128, 5, 8, False, True), Tile(128, 128, 4, 4, False, True)),
    128: Mix(True, 64, Tile(128, 128, 4, 8, False, True), Tile(128, 128, 4, 4, False, True, 4)),
}


def chains(rows: int) -> bool:
    """Whether the kernels of a mixture are launched as dependents of those before."""
    return rows < _ALONE


def tile_class(rows: int, per_token: int, count: int) -> int:
    """A number that two counts of rows share if their products take the same kernels.

    per_token: experts of a token; count: experts there are.
    """
    if rows <= UNSORTED_ROWS:
        return 1
    mean = rows * per_token / count
    return next((16 << step for step, most in enumerate(_PAIRS) if mean <= most), 128)


def choose(
    rows: int,
    per_token: int,
    count: int,
    dtype: torch.dtype,
    *,
    shared: int = HOPPER_SHARED,
    hopper: bool = True,
) -> Mix:
    """How to launch the products of so many rows. dtype: of the weights; shared: bytes a program
    may have; hopper: the card has descriptors."""
    narrow = dtype.itemsize == 1
    mix = (_FP8_TILES if narrow else _TILES)[tile_class(rows, per_token, count)]
    if dtype == torch.float32:
        mix = Mix(mix.is_sorted, 16, _WIDE, _WIDE)
    if shared < _LARGE_SHARED and mix.block_m == 128:
        mix = replace(
            mix,
            gate_up=replace(mix.gate_up, block_n=mix.gate_up.block_n // 2),
            down=replace(mix.down, block_n=mix.down.block_n // 2),
        )
    down, gate_up = (
        replace(tile, boxed=tile.boxed and hopper).fitting(
            mix.block_m, matrices, dtype.itemsize, shared
        )
        for matrices, tile in ((1, mix.down), (2, mix.gate_up))
    )
    return replace(mix, gate_up=gate_up, down=down)


def specialised(mix: Mix) -> Mix:
    """The same products by the kernel of sm_90."""
    return replace(mix, block_m=GROUPS[True] * GROUP_ROWS, specialised=True)


def takes(x: torch.Tensor, hidden: int, inner: int, mix: Mix) -> bool:
    """Whether the kernel of sm_90, in Gluon, which is no stable interface, computes the products of
    a mixture with FP8 weights: many rows of 16 bits, whole blocks of columns."""
    return (
        mix == _FP8_TILES[128]
        and has_gluon(x.device, TRITON)
        and x.element_size() == 2
        and hidden % 128 == inner % 128 == 0
        and x.numel() < 1 << 31
    )


def most_tiles(pairs: int, count: int, block_m: int) -> int:
    """The most tiles that this many pairs can fill, each of one expert, however they are
    distributed."""
    met = min(pairs, count)
    return met + (pairs - met) // block_m

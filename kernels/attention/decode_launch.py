"""Launch parameters of decode attention: which split, how many, how many warps.

Invariant: everything here is a function of numbers that the host knows before a step runs (rows,
heads, dtype, a bound of the context, the card's resources), so that the kernels that a
configuration can ever launch are known in advance (see `engine/runner/warmup.py`). No result
depends on it, except on the length of a tile.
"""

from dataclasses import dataclass
from typing import TypedDict

import torch
import triton
from torch import Tensor

from quire.kernels.attention.decode_merge import merge_shape
from quire.kernels.support import HOPPER_MULTIPROCESSORS, HOPPER_SHARED

UNIT = 256  # tokens: the shortest split of level 1
LONG = 8  # units
MAX_SPLITS = 32  # partial results of a row at most
ALONE = 128  # rows, from which a dependent launch loses, but of what is quantized
_TILE_BYTES = 16_384  # of keys a step of the loop; small tiles and many programs win
_TILE_PROGRAMS = 128  # rows * kv heads up to which a program takes a tile, of contexts up to
_TILE_TOKENS = 65_536  # tokens over all rows and kv heads, and a unit of longer ones
_UNIT_PROGRAMS = 192  # and up to which it takes a unit; beyond, a long split
_EARLY_PROGRAMS = 32  # up to which the kernels that follow are launched early, whatever the context
_TWO_EACH = 264  # up to which an H200 takes two a multiprocessor: deep pipelines, begun early
_COLUMNS = 96  # rows, from which heads are columns over e4m3
# Of columns: up to as many programs of one warp as run at once, and of two warps in two turns.
_ONE_WARP, _TWO_WARPS = 9 * 132, 2 * 6 * 132
_EIGHT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)  # which knows 8 columns
_DEEP = 4  # stages of theirs: three tiles on their way
_THREE_EACH = 396  # and up to which three; beyond, exact programs have two warps too
_EACH = (4, 5, 3)  # beyond, how many of two warps a multiprocessor may hold; the first is best
_BY_BOXES = 352  # up to which four each are better, where tiles come by descriptors
_STAGES = {False: 2, True: 3}  # of the others, by `pairs`, whose tiles have half the bytes
# Registers of a thread, for heads up to 128: of two warps by how many programs a multiprocessor is
# to hold: each quarter of it has 16,384. Four take 240, so that few lie beside a product ahead.
_OF_TWO_WARPS = {3: 224, 4: 240, 5: 168}
_OF_FOUR_WARPS = 128


class Launch(TypedDict, total=False):
    """How to launch, mostly for tuning. Of these only tile and exact are part of the order of
    summation: results depend on no other.

    counters: int32 zeros, and zeros again afterwards; if fewer than R * Hkv are there for long
    splits, some are made, which costs a kernel. pdl: dependent on the kernel before (every kernel
    of the chain must wait for its predecessor; what prepared the step, and wrote all but the rows'
    newest tokens, stands before the whole chain); of ALONE rows and more only where the result is
    quantized. ahead: read the first tiles before waiting.
    level: a split is a tile, a unit or a long split (0 to 2). tile: tokens, a divisor of UNIT.
    tma: tiles come by descriptors, where they are whole (16 bits, within a block, not padded).
    exact: along the tree that prefill takes in exact mode, and without descriptors.
    """

    counters: Tensor | None
    pdl: bool
    level: int | None
    tile: int | None
    num_warps: int | None
    num_stages: int | None
    tma: bool | None
    ahead: bool | None
    exact: bool


@dataclass(frozen=True)
class Heads:
    """What a step's rows share: the heads, and how the cache holds them. dtype: of activations;
    narrow: the cache is e4m3, not of that dtype."""

    q_heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype
    block_size: int
    narrow: bool = False

    @property
    def padded(self) -> int:
        return int(triton.next_power_of_2(self.dim))

    def boxed(self, tile: int) -> bool:
        """Whether a tile can come as one box (see `kv_tiles.boxes`)."""
        whole = tile <= self.block_size and self.dim == self.padded
        return self.dtype.itemsize == 2 and whole


@dataclass(frozen=True)
class Shape:
    """One launch. splits: partial results a row has room for; most: tokens up to which level 0 cuts
    a context into tiles; early: up to which what follows is launched early; fixed: tiles lie where
    they do for every query; long: units of a long split; pairs: of a cache of e4m3 (`pairs.py`);
    columns: heads are columns of the matrix units, not rows."""

    level: int
    tile: int
    most: int
    splits: int
    tma: bool
    ahead: bool
    warps: int
    stages: int
    early: int
    registers: int | None
    fixed: bool
    long: int
    pairs: bool
    columns: bool

    @property
    def merges(self) -> bool:
        """Whether a kernel of its own merges the splits."""
        return self.splits > 1 and self.level < 2


def choose(
    rows: int,
    heads: Heads,
    max_context_len: int,
    *,
    hopper: bool = True,
    shared: int = HOPPER_SHARED,
    level: int | None = None,
    tile: int | None = None,
    num_warps: int | None = None,
    num_stages: int | None = None,
    tma: bool | None = None,
    ahead: bool | None = None,
    exact: bool = False,
) -> Shape:
    """The launch for so many rows, contexts up to max_context_len. hopper: the card has descriptors
    (`support.before_hopper`); shared: bytes a program (`support.shared_bytes`). The rest: of
    `Launch`. Raises ValueError for a tile that does not divide a unit."""
    programs, padded = rows * heads.kv_heads, heads.padded
    tile = tile or tile_tokens(heads.dim, heads.dtype)
    if UNIT % tile:
        raise ValueError(f"tile {tile} does not divide a unit of {UNIT} tokens")
    if level is None:
        level = split_level(programs)
        if exact and level == 1:  # a unit may be a tile there
            level = 2
    most = most_in_tiles(programs, tile)
    if exact:  # where a unit is longer than a tile, no split cuts it
        most = min(most, tile * MAX_SPLITS // 2)
    tma = (hopper if tma is None else tma) and heads.boxed(tile) and not exact
    long = MAX_SPLITS if exact else min(LONG, MAX_SPLITS - 1)  # by which kernels know exact mode
    if ahead is None:
        on_their_way = (_DEEP - 1) * 2 * tile * padded * heads.dtype.itemsize  # bytes a program
        ahead = level == 2 and programs <= _TWO_EACH and 2 * on_their_way <= shared
    crowded = level == 2 and not ahead and heads.dim <= 128
    pairs = heads.narrow and heads.dtype.itemsize == 2 and not exact
    # two warps take little more than half the instructions; few programs rather want four
    many = crowded and (tma or (exact and programs > _THREE_EACH and not heads.narrow))
    columns = _EIGHT and many and pairs and rows >= _COLUMNS and heads.q_heads <= 8 * heads.kv_heads
    columns = columns and heads.dim == 128  # heads of 64, of one warp, had other numbers on a card
    one = columns and not _ONE_WARP < programs <= _TWO_WARPS
    warps = num_warps or (1 if one else 2 if many else 4)
    each = 4
    if crowded and _three_each(programs, heads, tile, shared, tma=tma, exact=exact):
        each = 3
    elif many and warps == 2 and programs > _THREE_EACH and _even(heads, shared):
        each = _held(programs)
    if each == 3:
        num_stages = num_stages or 3
    early = UNIT * LONG if ahead else max_context_len if columns else 0
    if level == 0:
        early = max_context_len if programs <= _EARLY_PROGRAMS else most
    # what widens a narrow cache would spill
    bound = padded <= 128 and heads.dtype.itemsize == 2 and not ahead and not heads.narrow
    return Shape(
        level=level,
        tile=tile,
        most=most,
        splits=num_splits(max_context_len, tile, level, most, long),
        tma=tma,
        ahead=ahead,
        warps=warps,
        stages=num_stages or (_DEEP if ahead else 2 if one else _STAGES[pairs]),
        early=early,
        registers={2: _OF_TWO_WARPS[each], 4: _OF_FOUR_WARPS}.get(warps) if bound else None,
        fixed=exact,
        long=long,
        pairs=pairs,
        columns=columns,
    )


def _three_each(
    programs: int, heads: Heads, tile: int, shared: int, *, tma: bool, exact: bool
) -> bool:
    """Whether a multiprocessor is to hold three programs, each with two tiles of keys and values,
    and no more: with four, some have four while others have two."""
    least = _BY_BOXES if tma else _TWO_EACH
    tiles = 4 * tile * heads.padded * heads.dtype.itemsize  # bytes
    fit = 3 * tiles <= shared and not heads.narrow
    return (tma or exact) and fit and least < programs <= _THREE_EACH


def _even(heads: Heads, shared: int) -> bool:
    """Whether it was measured how many programs a multiprocessor holds: of whole heads of 128."""
    whole = heads.dim == 128 and heads.dtype.itemsize == 2 and not heads.narrow
    return whole and shared >= HOPPER_SHARED


def _held(programs: int) -> int:
    """How many programs a multiprocessor is to hold at once: so that the last turn of all of them
    leaves the fewest places empty. Five at once in a single turn lose where contexts differ."""
    single = programs <= 5 * HOPPER_MULTIPROCESSORS
    among = [each for each in _EACH if not (single and each == 5)]
    return min(among, key=lambda each: -(-programs // (each * HOPPER_MULTIPROCESSORS)) * each)


def kernels(
    rows: int,
    heads: Heads,
    max_context_len: int,
    *,
    alone: bool,
    hopper: bool,
    shared: int,
    exact: bool = False,
) -> set[tuple[object, ...]]:
    """Names of the kernels that a call of so many rows launches, equal where the kernels are.
    alone: no prompts are beside them, whose result is never quantized."""
    shape = choose(rows, heads, max_context_len, hopper=hopper, shared=shared, exact=exact)
    chained = rows < ALONE
    warps = shape.warps, shape.stages, shape.registers, shape.columns
    taken = (shape.level, shape.tma, shape.ahead, *warps)
    found: set[tuple[object, ...]] = {("sum", chained, alone or not shape.columns, *taken)}
    if shape.merges:
        found.add(("merge", chained, shape.level, *merge_shape(rows, heads.q_heads)))
    return found


def tile_tokens(head_dim: int, dtype: torch.dtype) -> int:
    """Tokens a tile: a function of the head and the dtype alone, as results depend on it."""
    padded = triton.next_power_of_2(head_dim)
    return max(16, min(64, _TILE_BYTES // (int(padded) * dtype.itemsize)))


def split_level(programs: int) -> int:
    """The split to launch, 0 to 2, for rows * kv heads."""
    if programs <= _TILE_PROGRAMS:
        return 0
    return 1 if programs <= _UNIT_PROGRAMS else 2


def most_in_tiles(programs: int, tile: int) -> int:
    """The longest context that level 0 cuts into tiles: within one long split, and shorter the more
    rows * kv heads fill the device anyway."""
    return min(tile * MAX_SPLITS, UNIT * LONG, _TILE_TOKENS // max(programs, 1))


def num_splits(max_context_len: int, tile: int, level: int, most: int, long: int = LONG) -> int:
    """Partial results a row can have, for contexts up to max_context_len. most: in tiles; long:
    units of a long split."""
    if long >= MAX_SPLITS:  # exact mode
        in_tiles = min(MAX_SPLITS // 2, -(-max_context_len // tile))
        in_units = min(MAX_SPLITS, -(-max_context_len // UNIT))
        return 1 if level == 2 else max(1, in_tiles, in_units)
    if level == 2:
        return max(1, min(-(-MAX_SPLITS // long), -(-max_context_len // (UNIT * long))))
    units = max(1, min(MAX_SPLITS, -(-max_context_len // UNIT)))
    return units if level else max(units, -(-min(max_context_len, most) // tile))

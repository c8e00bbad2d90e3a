"""Sorts (token, expert) pairs by expert on the device, without atomics.

Invariant: a pair is `token * per_token + slot`. The pairs of an expert are adjacent, in order of
their numbers, and experts are in order of theirs. Tiles cut them into runs of at most `block_m`
pairs, each of one expert; entries after the last tile are empty.

A few tokens are sorted by one program. More are counted by chunks first, and each chunk then finds
its places from all counts. Meanwhile other programs list the tiles: no program waits for another.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.experts import tiles

_ELEMENTS = 4096  # tokens times experts that a program holds
_FEW = 16  # tokens, that one program puts in order
_MANY = 1024  # tokens, from which chunks are larger, so that fewer counts are added
_COUNTS = 4096  # numbers of other chunks that a program adds at once
_TILES = 32  # of the list, that a program finds at once


class Order(NamedTuple):
    """pairs: [P] int32, in order. tiles: [3, most_tiles] int32: of each the expert, and where in
    `pairs` it begins and ends; all 0 where there is none. down_tiles: the same for downs."""

    pairs: Tensor
    tiles: Tensor
    down_tiles: Tensor


@triton.jit
def _taken(
    experts_ptr, t, T, PER_TOKEN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr
):
    """Whether a token takes an expert: [BLOCK_T, BLOCK_E] int32."""
    e = tl.arange(0, BLOCK_E)[None, :]
    taken = tl.zeros((BLOCK_T, BLOCK_E), tl.int32)
    for slot in tl.static_range(PER_TOKEN):
        expert = tl.load(experts_ptr + t * PER_TOKEN + slot, mask=t < T, other=-1).to(tl.int32)
        taken += (expert[:, None] == e).to(tl.int32)
    return taken


@triton.jit(do_not_specialize=["T"])
def _count_kernel(
    experts_ptr,  # [T, PER_TOKEN] int64
    counts_ptr,  # [chunks, BLOCK_E] int32
    T,
    PER_TOKEN: tl.constexpr,
    BLOCK_T: tl.constexpr,  # tokens a chunk
    BLOCK_E: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (chunks,)."""
    chunk = tl.program_id(0)
    t = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    taken = _taken(experts_ptr, t, T, PER_TOKEN, BLOCK_T, BLOCK_E)
    tl.store(counts_ptr + chunk * BLOCK_E + tl.arange(0, BLOCK_E), tl.sum(taken, 0))


@triton.jit
def _list_tiles(
    tiles_ptr, first, total, most_tiles, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write BLOCK_I tiles of the list, from `first`. total: [BLOCK_E], pairs of each expert."""
    e = tl.arange(0, BLOCK_E)[None, :]
    ends = tl.cumsum(total, 0)[None, :]
    begins = ends - total[None, :]
    own = (total[None, :] + BLOCK_M - 1) // BLOCK_M
    last = tl.cumsum((total + BLOCK_M - 1) // BLOCK_M, 0)[None, :]
    i = first + tl.arange(0, BLOCK_I)
    expert = tl.sum((last <= i[:, None]).to(tl.int32), 1)
    hit = expert[:, None] == e
    at = begins + (i[:, None] - (last - own)) * BLOCK_M
    begin = tl.sum(tl.where(hit, at, 0), 1)
    end = tl.sum(tl.where(hit, tl.minimum(at + BLOCK_M, ends), 0), 1)
    tl.store(tiles_ptr + i, tl.where(expert < BLOCK_E, expert, 0), mask=i < most_tiles)
    tl.store(tiles_ptr + most_tiles + i, begin, mask=i < most_tiles)
    tl.store(tiles_ptr + 2 * most_tiles + i, end, mask=i < most_tiles)


@triton.jit(do_not_specialize=["T", "chunks", "most_tiles", "most_down"])
def _place_kernel(
    experts_ptr,  # [T, PER_TOKEN] int64
    counts_ptr,  # [chunks, BLOCK_E] int32, read unless ALONE
    pairs_ptr,  # [T * PER_TOKEN] int32
    tiles_ptr,  # [3, most_tiles] int32
    down_ptr,  # [3, most_down] int32, written where DOWN_M is not BLOCK_M
    T,
    chunks,
    most_tiles,
    most_down,
    PER_TOKEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DOWN_M: tl.constexpr,
    ALONE: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (chunks + ceil(most_tiles / BLOCK_I) + ceil(most_down / BLOCK_I),): the first place
    pairs, the others list tiles; most_down is 0 where there is one list."""
    chunk = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    t = (0 if ALONE else chunk) * BLOCK_T + tl.arange(0, BLOCK_T)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    taken = _taken(experts_ptr, t, T, PER_TOKEN, BLOCK_T, BLOCK_E)
    if ALONE:
        total = tl.sum(taken, 0)
        before = tl.zeros((BLOCK_E,), tl.int32)
    else:
        total = tl.zeros((BLOCK_E,), tl.int32)
        before = tl.zeros((BLOCK_E,), tl.int32)
        for first in range(0, chunks, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)[:, None]
            counts = tl.load(counts_ptr + c * BLOCK_E + e[None, :], mask=c < chunks, other=0)
            total += tl.sum(counts, 0)
            before += tl.sum(tl.where(c < chunk, counts, 0), 0)
    if chunk < chunks:
        begins = tl.cumsum(total, 0) - total
        places = (begins + before)[None, :] + tl.cumsum(taken, 0) - taken
        for slot in tl.static_range(PER_TOKEN):
            pair = t * PER_TOKEN + slot
            expert = tl.load(experts_ptr + pair, mask=t < T, other=-1).to(tl.int32)
            place = tl.sum(tl.where(expert[:, None] == e[None, :], places, 0), 1)
            tl.store(pairs_ptr + place, pair, mask=t < T)
    first = (chunk - chunks) * BLOCK_I
    if (first >= 0) & (first < most_tiles):
        _list_tiles(tiles_ptr, first, total, most_tiles, BLOCK_M, BLOCK_E, BLOCK_I)
    if DOWN_M != BLOCK_M:
        first -= tl.cdiv(most_tiles, BLOCK_I) * BLOCK_I
        if first >= 0:
            _list_tiles(down_ptr, first, total, most_down, DOWN_M, BLOCK_E, BLOCK_I)


def sort(
    experts: Tensor, count: int, block_m: int, down_m: int | None = None, *, pdl: bool = False
) -> Order:
    """experts: [T, per_token] int64 contiguous, T > 0, no token has one twice; count: experts there
    are; block_m: pairs a tile; down_m: and a tile of downs, where it is not the same."""
    rows, per_token = experts.shape
    device = experts.device
    most = tiles.most_tiles(experts.numel(), count, block_m)
    pairs = torch.empty(experts.numel(), dtype=torch.int32, device=device)
    listed = torch.empty(3, most, dtype=torch.int32, device=device)
    down_m, most_down, down_listed = down_m or block_m, 0, listed
    if down_m != block_m:
        most_down = tiles.most_tiles(experts.numel(), count, down_m)
        down_listed = listed.new_empty(3, most_down)
    block_e = triton.next_power_of_2(count)
    block_t, alone = sort_class(rows, count)
    chunks = triton.cdiv(rows, block_t)
    counts = pairs if alone else pairs.new_empty(chunks, block_e)
    if not alone:
        _count_kernel[(chunks,)](
            experts, counts, rows, PER_TOKEN=per_token, BLOCK_T=block_t, BLOCK_E=block_e, PDL=pdl,
            num_warps=4, launch_pdl=pdl,
        )  # fmt: skip
    _place_kernel[(chunks + triton.cdiv(most, _TILES) + triton.cdiv(most_down, _TILES),)](
        experts, counts, pairs, listed, down_listed, rows, chunks, most, most_down,
        PER_TOKEN=per_token, BLOCK_T=block_t, BLOCK_E=block_e,
        BLOCK_C=max(1, _COUNTS // block_e), BLOCK_I=_TILES, BLOCK_M=block_m, DOWN_M=down_m,
        ALONE=alone, PDL=pdl, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip
    return Order(pairs, listed, down_listed)


def sort_class(rows: int, count: int) -> tuple[int, bool]:
    """Tokens that a program takes, and whether one takes all. Equal ones mean the same kernels."""
    most = max(1, _ELEMENTS // int(triton.next_power_of_2(count)))
    block_t = min(_FEW if rows <= _MANY else 2 * _FEW, most)
    return block_t, rows <= block_t

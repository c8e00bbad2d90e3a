"""How prefill attention is launched: tiles of which size, for which rows, of what splits.

Invariant: as in `decode_launch.py`, everything here is a function of numbers that the host knows
before a step runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import triton
from torch import Tensor

from quire.kernels.attention.decode_launch import Heads
from quire.kernels.support import HOPPER_SHARED, has_gluon

SPLIT = 256  # tokens of a split of the context
FEW_PROGRAMS = 128  # tiles * kv heads up to which the context is split
GROUPS = 3  # tiles side by side in a program of hopper_prefill.py, where that gains on an H200:
_GROUPED_PROGRAMS = 208  # so many such programs, and
_GROUPED_TILES = 10  # so many tiles of that height a row, of which one is not filled
FEW_ROWS = 2  # that share a launch: one that finds no row of its lengths takes longer
_SHORT_ROWS = 16  # tile height of the launch for rows of few tokens
_WIDE_BYTES = 163_840  # of shared memory: two stages of heads of 256
_ANY = 1 << 30  # more new tokens than any row has


@dataclass(frozen=True)
class Tiles:
    """A launch shape: query rows and keys a tile, warps, loads in flight.

    tma: whole tiles come through descriptors made on the host, where a tile lies in one block.
    """

    queries: int
    keys: int
    num_warps: int
    num_stages: int
    tma: bool = False


TUNED = Tiles(64, 64, 4, 2, tma=True)  # heads of up to 128, 16 bits


def key_tile(head_dim: int, dtype: torch.dtype) -> int:
    """Keys a tile: a function of the head and the dtype alone, as results depend on it."""
    padded = triton.next_power_of_2(head_dim)
    if dtype == torch.float32:
        return 32 if padded <= 128 else 16
    return 64


@cache
def choose_tiles(head_dim: int, dtype: torch.dtype, shared: int = HOPPER_SHARED) -> Tiles:
    """The launch shape for rows of many tokens: the best of those tuned on an H200, or on a card of
    little shared memory (bytes a program) what fits."""
    keys = key_tile(head_dim, dtype)
    if dtype == torch.float32:  # no matrix units: small tiles, or the registers spill
        return Tiles(32, keys, 8, 1)
    if head_dim > 128:
        return Tiles(64, keys, 8, 2 if shared > _WIDE_BYTES else 1)
    return TUNED


@dataclass(frozen=True)
class PrefillLaunch:
    """Tiles for the rows of `least` to `most` new tokens. split: tokens; 0 for whole contexts.
    groups: tiles that a program takes side by side, on sm_90."""

    tiles: Tiles
    least: int
    most: int
    split: int = 0
    groups: int = 1


def plan_launches(
    tokens: int,
    rows: int,
    kv_heads: int,
    group: int,
    longest: int,
    max_context_len: int,
    tiles: Tiles,
    split: int | None,
) -> list[PrefillLaunch]:
    """The launches of a step. tiles: for rows of many tokens; split: None to choose, 0 for never.

    A step of few tiles takes all its rows in one launch: waste costs it less than a launch.
    """
    short_len = _SHORT_ROWS // group
    short = Tiles(_SHORT_ROWS, tiles.keys, 4, 2)
    lone = tiles if longest > short_len else short
    if split is None:
        programs = kv_heads * num_tiles(tokens, rows, group, lone)
        split = SPLIT if programs <= FEW_PROGRAMS else 0
    if split % tiles.keys:
        raise ValueError(f"split {split} is not a multiple of {tiles.keys}, the keys of a tile")
    groups = GROUPS if lone == TUNED and _gain_in_groups(tokens, rows, kv_heads, group) else 1
    if split or rows <= FEW_ROWS:  # one split is the whole context, bit for bit
        return [PrefillLaunch(lone, 1, _ANY, split if max_context_len > split else 0, groups)]
    few = PrefillLaunch(short, 1, short_len)
    many = PrefillLaunch(tiles, short_len + 1, _ANY, groups=groups)
    return [many, few] if longest > short_len else [few]


def _gain_in_groups(tokens: int, rows: int, kv_heads: int, group: int) -> bool:
    """Whether tiles of GROUPS side by side fill the device, and rows fill them."""
    high = num_tiles(tokens, 0, group, TUNED, GROUPS)
    return kv_heads * high >= _GROUPED_PROGRAMS and high >= _GROUPED_TILES * rows


def for_hopper(launch: PrefillLaunch, q: Tensor, k_cache: Tensor, window: int) -> bool:
    """Whether hopper_prefill.py computes a launch of fast mode, with the bits of prefill.py's
    kernel: whole contexts through descriptors, on sm_90."""
    _, _, block_size, dim = k_cache.shape
    return (
        has_gluon(q.device)
        and q.dtype in (torch.bfloat16, torch.float16)
        and k_cache.dtype == q.dtype
        and dim in (64, 128)
        and launch.tiles == TUNED
        and block_size >= TUNED.keys
        and not (launch.split or window)
    )


def num_tiles(tokens: int, rows: int, group: int, tiles: Tiles, groups: int = 1) -> int:
    """Tiles at most, or as many as `groups` make one, whatever the rows' lengths."""
    return tokens // (groups * (tiles.queries // group)) + rows


def kernels(
    tokens: int, rows: int, heads: Heads, longest: int, max_context_len: int, shared: int
) -> set[tuple[object, ...]]:
    """Names of the kernels that a call launches, equal where the kernels are. shared: bytes a
    program may have (`support.shared_bytes`)."""
    tiles, group = choose_tiles(heads.dim, heads.dtype, shared), heads.q_heads // heads.kv_heads
    plan = plan_launches(tokens, rows, heads.kv_heads, group, longest, max_context_len, tiles, None)
    return kernels_of(plan)


def kernels_of(plan: Sequence[PrefillLaunch]) -> set[tuple[object, ...]]:
    """Their names, whatever rows they take, and the merge's where there is one."""
    names: set[tuple[object, ...]] = {("sum", one.tiles, one.groups, one.split) for one in plan}
    return names | {("merge",) for launch in plan if launch.split}

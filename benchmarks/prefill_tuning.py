"""Launch shapes and splits of prefill attention against one another (`prefill.py --tune`)."""

import itertools
import statistics

from paging import KV_HEADS, Pool
from prefill_step import Step

from quire.kernels.attention.prefill_launch import Tiles

LAUNCHES = [
    Tiles(128, 128, 8, 2),
    Tiles(128, 128, 8, 3),
    Tiles(128, 128, 8, 4),
    Tiles(128, 64, 8, 2),
    Tiles(128, 64, 8, 3),
    Tiles(128, 64, 8, 4),
    Tiles(128, 64, 4, 3),
    Tiles(64, 64, 4, 2),
    Tiles(64, 64, 4, 3),
    Tiles(64, 128, 4, 2),
    Tiles(64, 128, 8, 2),
    Tiles(64, 128, 8, 3),
    Tiles(128, 128, 8, 2, tma=True),
    Tiles(128, 128, 8, 3, tma=True),
    Tiles(128, 64, 8, 2, tma=True),
    Tiles(128, 64, 8, 3, tma=True),
    Tiles(64, 64, 4, 2, tma=True),
    Tiles(64, 64, 4, 3, tma=True),
]
SPLITS = (0, 128, 256, 512, 1024)
SPLIT_LAUNCHES = [
    Tiles(64, 64, 4, 2, tma=True),
    Tiles(64, 64, 4, 3, tma=True),
    Tiles(64, 64, 4, 3),
    Tiles(64, 64, 8, 3, tma=True),
    Tiles(128, 64, 8, 2, tma=True),
    Tiles(128, 64, 8, 3, tma=True),
]


def tune() -> None:
    """Time every launch shape at a few lengths and block sizes; print them in order."""
    pool = Pool(2**29)
    for block, (length, count, cached) in itertools.product(
        (64, 128), ((8192, 2, 0), (4096, 4, 0), (1024, 16, 0), (512, 1, 0), (56, 1, 2944))
    ):
        step = Step(pool, [length] * count, [cached] * count, block)
        found = []
        for tiles in LAUNCHES:
            if tiles.tma and tiles.keys > block:
                continue
            try:
                step.check(tiles=tiles)
                found.append((statistics.median(step.times(3, tiles=tiles)), tiles))
            except Exception as error:
                print("failed", tiles, repr(error)[:120])
        found.sort(key=lambda one: one[0])
        print(f"{length} new x {count} over {cached}, block {block}")
        for value, tiles in found[:6]:
            print(f"  {value:9.2f} us {step.flops / value / 1e6:6.1f} TFLOP/s {tiles}", flush=True)
    tune_splits(pool)


def tune_splits(pool: Pool) -> None:
    """Time the lengths of a split, with the launch shapes, on prefix hits."""
    for group, new, cached in itertools.product((2, 4), (56, 250), (2750, 16_000)):
        step = Step(pool, [new, 8], [cached, 0], 64, group=group)
        found = []
        for tiles, split in itertools.product(SPLIT_LAUNCHES, SPLITS):
            try:
                step.check(tiles=tiles, split=split)
                times = step.times(3, tiles=tiles, split=split)
                found.append((statistics.median(times), split, tiles))
            except Exception as error:
                print("failed", tiles, split, repr(error)[:120])
        found.sort(key=lambda one: one[0])
        print(f"{new} new over {cached}, {group * KV_HEADS} heads")
        for value, split, tiles in found[:6]:
            print(f"  {value:9.2f} us  split {split:5} {tiles}", flush=True)

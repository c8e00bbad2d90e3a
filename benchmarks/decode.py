"""Paged decode attention against the card's memory, and against what came before it.

    python benchmarks/decode.py [--quick | --tune] [--output benchmarks/results/decode.json]

A row's value is microseconds a layer, kernel plus reduction; its floor is the bytes of keys and
values over 4.3 TB/s. Contexts of 1031 lie just past a split, where a real batch spends its time.
"""

import argparse
import itertools
import random
import statistics
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import historical
import torch
from common import COPY_BYTES, Row, chain_us, precompile, result_row, write_results
from paging import HEAD_DIM, KV_HEADS, SCALE, Pool, Rows, event_us, relative_error

from quire.kernels.attention.decode import decode_attention
from quire.kernels.linear.skinny import new_counters

ROOM = 4096  # tokens a captured graph is sized for, where contexts are shorter
ERROR = 1e-2


def queries(rows: Rows, group: int) -> torch.Tensor:
    """Random queries [R, Hq, D] for a batch."""
    shape = (len(rows.contexts), group * KV_HEADS, HEAD_DIM)
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_()


def ragged(count: int) -> list[int]:
    """Contexts as a served batch has them."""
    draw = random.Random(1)
    return [draw.randint(100, 1500) for _ in range(count)]


def triton_times(rows: Rows, q: torch.Tensor, runs: int, **launch: Any) -> list[float]:
    room = max(ROOM, *rows.contexts)
    rest = (rows.block_tables, rows.context_lens, SCALE, room)
    launch["counters"] = new_counters(q.device)  # as in the engine, which has them already
    return chain_us(
        [partial(decode_attention, q, k, v, *rest, **launch) for k, v in rows.layers], runs
    )


def check(rows: Rows, q: torch.Tensor, **launch: Any) -> float:
    """Error of the kernel against fp32 on up to eight rows; raises where it is wrong."""
    few = slice(0, min(8, len(rows.contexts)))
    k, v = rows.layers[0]
    longest = max(rows.contexts[few])
    rest = (rows.block_tables[few], rows.context_lens[few], SCALE, longest)
    found = decode_attention(q[few], k, v, *rest, **launch)
    error = relative_error(found, historical.vectorised_decode(q[few].float(), k, v, *rest))
    if error > ERROR:
        raise AssertionError(f"decode_attention is wrong: error {error} with {launch}")
    return error


def row(workload: str, model: str, engine: str, times: list[float], rows: Rows) -> Row:
    """One row of the results."""
    return result_row(
        workload,
        model,
        engine,
        times,
        "us/layer",
        rows.kv_bytes / COPY_BYTES * 1e6,
        tb_per_s=rows.kv_bytes / statistics.median(times) / 1e6,
    )


def historical_rows(rows: Rows, q: torch.Tensor, workload: str, model: str) -> Iterator[Row]:
    """The two PyTorch versions, eager as they are: they read the host or copy the cache."""
    k, v = rows.layers[0]
    rest = (rows.block_tables, rows.context_lens, SCALE)
    tokens, longest = sum(rows.contexts), max(rows.contexts)
    if tokens <= 16_384:
        times = event_us(partial(historical.naive_decode, q, k, v, *rest), 3)
        yield row(workload, model, "pytorch-loop", times, rows)
    if len(rows.contexts) * longest <= 2**20:
        call = partial(historical.vectorised_decode, q, k, v, *rest, longest)
        yield row(workload, model, "pytorch-vectorised", event_us(call, 3), rows)


def cases(quick: bool) -> Iterator[tuple[str, list[int], int, int]]:
    """(workload, contexts, group, block size)"""
    batches = (1, 8, 64, 256) if quick else (1, 2, 4, 8, 16, 32, 64, 128, 256)
    contexts = (128, 1024, 1031) if quick else (128, 512, 1024, 1031, 4096, 16_384, 32_768)
    for batch, context in itertools.product(batches, contexts):
        yield f"decode-attention-b{batch}-c{context}", [context] * batch, 2, 64
    for batch, context in ((1, 16_384), (8, 16_384), (64, 4096)) if quick else ():
        yield f"decode-attention-b{batch}-c{context}", [context] * batch, 2, 64
    yield "decode-attention-ragged128", ragged(128), 2, 64
    for group in (4, 8):
        yield f"decode-attention-b64-c1031-g{group}", [1031] * 64, group, 64
    for block_size in (16, 32, 128, 256):
        yield f"decode-attention-b64-c1031-block{block_size}", [1031] * 64, 2, block_size


def measure(quick: bool) -> list[Row]:
    """Every case, checked and timed."""
    todo = list(cases(quick))
    largest = max(sum(contexts) + len(contexts) * 256 for _, contexts, _, _ in todo)
    pool = Pool(max(2**30, (largest + 512) * KV_HEADS * HEAD_DIM))
    results = []
    for workload, contexts, group, block_size in todo:
        rows = Rows.build(pool, contexts, block_size, ROOM)
        q = queries(rows, group)
        model = f"{group * KV_HEADS}/{KV_HEADS} heads of {HEAD_DIM}, block {block_size}"
        check(rows, q)
        runs = 3 if quick else 7
        found = [row(workload, model, "quire", triton_times(rows, q, runs), rows)]
        found.append(row(workload, model, "quire-pdl", triton_times(rows, q, runs, pdl=True), rows))
        if not quick or (len(contexts) in (1, 64) and max(contexts) == 1031 and group == 2):
            found.extend(historical_rows(rows, q, workload, model))
        for result in found:
            print_row(result)
        results.extend(found)
    return results


def print_row(result: Row) -> None:
    print(
        f"{result['workload']:36} {result['engine']:20} {result['value']:10.2f} us"
        f"  floor {result['floor']:8.2f}  {result['share_of_floor']:6.1%}"
        f"  {result['tb_per_s']:.2f} TB/s",
        flush=True,
    )


# ---------------------------------------------------------------- tuning

LAUNCHES = [
    {"level": level, "tile": tile, "num_warps": warps, "num_stages": stages, "tma": tma}
    for level in (0, 1, 2)
    for tma in (False, True)
    for tile in (32, 64)
    for warps in (2, 4)
    for stages in (2, 3, 4)
]


def tune(seconds_left: float = 240.0) -> None:
    """Time every launch shape on the batches that matter; print the best of each."""
    pool = Pool(2**30)
    batches = [[400], [1031], [400] * 8, [1031] * 8, [1031] * 16, [1031] * 32, [1031] * 64]
    batches += [[1024] * 64, ragged(128), [1031] * 256]
    ends = torch.cuda.Event(enable_timing=True)
    begins = torch.cuda.Event(enable_timing=True)
    begins.record()
    for contexts in batches:
        rows = Rows.build(pool, contexts, 64, ROOM)
        q = queries(rows, 2)
        found = []
        for launch in LAUNCHES:
            if launch["level"] == 0 and len(contexts) > 64:
                continue
            check(rows, q, **launch)
            for pdl in (False, True):
                found.append(
                    (statistics.median(triton_times(rows, q, 3, pdl=pdl, **launch)), pdl, launch)
                )
        found.sort(key=lambda one: one[0])
        floor = rows.kv_bytes / COPY_BYTES * 1e6
        print(f"batch {len(contexts)}, context {contexts[0]}: floor {floor:.1f} us")
        for kept, title in (
            (found[:5], "best"),
            *(([f for f in found if f[2]["level"] == n][:3], f"level {n}") for n in (0, 1, 2)),
            ([f for f in found if not f[1]][:2], "plain launch"),
        ):
            for value, pdl, launch in kept:
                print(f"  {title:13} {value:8.2f} us {floor / value:6.1%} pdl {pdl!s:5} {launch}")
        ends.record()
        torch.cuda.synchronize()
        if begins.elapsed_time(ends) / 1e3 > seconds_left:
            print("out of time")
            return


def compile_first(tuning: bool) -> None:
    """Fill Triton's cache in parallel, before CUDA starts."""
    calls = []
    launches: list[dict[str, Any]] = LAUNCHES if tuning else [{}]
    shapes = (
        [(2, 64)] if tuning else [(2, 16), (2, 32), (2, 64), (2, 128), (2, 256), (4, 64), (8, 64)]
    )
    for launch, (group, block_size), pdl, rows in itertools.product(
        launches, shapes, (False, True), (1, 24, 32, 256)
    ):
        if rows < 256 and tuning:
            continue
        calls.append(partial(_on_meta, rows, group, block_size, pdl=pdl, **launch))
    for fault in precompile(calls):
        print("not compiled:", fault, flush=True)


def _on_meta(rows: int, group: int, block_size: int, **launch: Any) -> torch.Tensor:
    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    cache = empty(8, KV_HEADS, block_size, HEAD_DIM)
    q = empty(rows, group * KV_HEADS, HEAD_DIM)
    tables, contexts = empty(rows, 64, dtype=torch.int32), empty(rows, dtype=torch.int32)
    return decode_attention(q, cache, cache, tables, contexts, SCALE, ROOM, **launch)


def main() -> int:
    parser = argparse.ArgumentParser(description="Paged decode attention on a GPU.")
    parser.add_argument("--quick", action="store_true", help="few cases, under a minute")
    parser.add_argument("--tune", action="store_true", help="try launch shapes, write nothing")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/decode.json"))
    options = parser.parse_args()
    compile_first(options.tune)
    if not torch.cuda.is_available():
        print("a CUDA device is needed", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    if options.tune:
        tune()
        return 0
    write_results(options.output, measure(options.quick))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Causal prefill attention: standard PyTorch, naive Triton, the paged flash kernel, and SDPA.

    python benchmarks/prefill.py [--quick | --tune] [--output benchmarks/results/prefill.json]

A row's value is TFLOP/s over the causal half of the scores (4 * Hq * D flop a pair of tokens); its
floor is the card's 790 TFLOP/s. Sequences of one length share 16k tokens, 16 query heads of 128
over 8. Memory is what the call allocates at its peak beyond its inputs. A version that cannot run
a length is reported with the reason, not left out. The last rows are chunks over a cached prefix,
and a chunk beside decode rows, in microseconds.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import historical
import torch
from common import (
    COPY_BYTES,
    MATMUL_FLOPS,
    Row,
    chain_us,
    precompile,
    result_row,
    write_results,
)
from naive_prefill import naive_triton_prefill
from paging import HEAD_DIM, KV_HEADS, SCALE, Pool, event_us
from prefill_step import GROUP, MODEL, TOKENS, Step, flops
from prefill_tuning import LAUNCHES, SPLIT_LAUNCHES, SPLITS, tune
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from quire.kernels.attention.prefill import prefill_attention
from quire.kernels.attention.prefill_launch import Tiles


def rate_row(workload: str, engine: str, times: list[float], work: float, memory: float) -> Row:
    """A row in TFLOP/s; memory in MiB."""
    rates = [work / t / 1e6 for t in times]
    floor = MATMUL_FLOPS / 1e12
    return result_row(workload, MODEL, engine, rates, "TFLOP/s", floor, memory_mib=memory)


def refused_row(workload: str, engine: str, reason: str) -> Row:
    """A version that cannot run this length, and why."""
    return {
        "workload": workload,
        "model": MODEL,
        "engine": engine,
        "value": None,
        "unit": "TFLOP/s",
        "floor": MATMUL_FLOPS / 1e12,
        "share_of_floor": None,
        "runs": [],
        "reason": reason,
    }


def peak_mib(call: Callable[[], object]) -> float:
    """Memory a call takes at its peak, its result included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def library_rows(workload: str, length: int, count: int, runs: int) -> Iterator[Row]:
    """SDPA's backends on dense tensors [count, heads, length, D], keys not repeated."""
    q, k, v = (
        torch.empty(count, heads, length, HEAD_DIM, dtype=torch.bfloat16, device="cuda").normal_()
        for heads in (GROUP * KV_HEADS, KV_HEADS, KV_HEADS)
    )
    work = flops([length] * count, [length] * count)
    for name, backend in (
        ("sdpa-cudnn", SDPBackend.CUDNN_ATTENTION),
        ("sdpa-flash", SDPBackend.FLASH_ATTENTION),
    ):
        call = partial(
            torch.nn.functional.scaled_dot_product_attention,
            q, k, v, is_causal=True, scale=SCALE, enable_gqa=True,
        )  # fmt: skip
        try:
            with sdpa_kernel(backend):
                memory = peak_mib(call)
                yield rate_row(workload, name, chain_us([call] * 4, runs), work, memory)
        except RuntimeError as error:
            yield refused_row(workload, name, str(error).splitlines()[0][:160])


def historical_rows(workload: str, length: int) -> Iterator[Row]:
    """What came before, one sequence after the other."""
    q, k, v = (
        torch.empty(length, heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda").normal_()
        for heads in (GROUP * KV_HEADS, KV_HEADS, KV_HEADS)
    )
    work = flops([length], [length])
    for name, function in (
        ("pytorch-standard", historical.standard_prefill),
        ("naive-triton", naive_triton_prefill),
    ):
        call = partial(function, q, k, v, SCALE)
        try:
            memory = peak_mib(call)
            yield rate_row(workload, name, event_us(call, 3), work, memory)
        except Exception as error:  # out of shared memory, of tensor size, or of device memory
            yield refused_row(workload, name, f"{type(error).__name__}: {error}"[:200])
    torch.cuda.empty_cache()


def measure(quick: bool) -> list[Row]:
    lengths = (
        (128, 1024, 4096, 8192) if quick else (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16_384)
    )
    runs = 3 if quick else 7
    pool = Pool(2**30)
    results: list[Row] = []

    def keep(row: Row) -> None:
        print_row(row)
        results.append(row)

    for length in lengths:
        count = max(1, min(256, TOKENS // length))
        workload = f"prefill-attention-{length}x{count}"
        for block in (64,) if quick else (64, 128, 256):
            step = Step(pool, [length] * count, [0] * count, block)
            step.check()
            memory = peak_mib(step.call())
            name = "quire" if block == 64 else f"quire-block{block}"
            keep(rate_row(workload, name, step.times(runs), step.flops, memory))
        for row in library_rows(workload, length, count, runs):
            keep(row)
        if not quick or length in (128, 1024):
            for row in historical_rows(workload, length):
                keep(row)
    for row in mixed_rows(pool, runs):
        keep(row)
    return results


def mixed_rows(pool: Pool, runs: int) -> Iterator[Row]:
    """Chunks over a prefix and beside decode rows: microseconds, against the larger floor."""
    yield from hit_rows(pool, runs)
    for name, news, cached in (
        ("chunk-2048-over-2048", [2048], [2048]),
        ("chunk-2048-beside-64-decode-rows", [2048] + [1] * 64, [0] + [1030] * 64),
        ("64-decode-rows", [1] * 64, [1030] * 64),
    ):
        step = Step(pool, news, cached, 64)
        step.check()
        times = step.times(runs)
        floor = max(step.flops / MATMUL_FLOPS, step.rows.kv_bytes / COPY_BYTES) * 1e6
        yield result_row(f"prefill-attention-{name}", MODEL, "quire", times, "us/layer", floor)


def hit_rows(pool: Pool, runs: int) -> Iterator[Row]:
    """A prompt of which all but the end is cached, its context split and not; also as a captured
    step sends it: padded to 64 tokens by a second row, the context bounded by 4096."""
    for name, news, cached, bound in (
        ("hit-3000-new-56", [56], [2944], 0),
        ("hit-3000-new-56-captured", [56, 8], [2944, 0], 4096),
        ("hit-3000-new-3-captured", [3, 13], [2944, 0], 4096),
        ("cold-56-captured", [56, 8], [0, 0], 4096),
        ("hit-3000-new-250-captured", [250, 6], [2750, 0], 4096),
    ):
        for group, split in itertools.product((2, 4), (None, 0)):
            step = Step(pool, news, cached, 64, group=group, bound=bound)
            step.check(split=split)
            times = step.times(runs, split=split)
            floor = max(step.flops / MATMUL_FLOPS, step.rows.kv_bytes / COPY_BYTES) * 1e6
            yield result_row(
                f"prefill-attention-{name}", f"{group * KV_HEADS}/{KV_HEADS} heads of {HEAD_DIM}",
                "quire" if split is None else "quire-unsplit", times, "us/layer", floor,
            )  # fmt: skip


def print_row(row: Row) -> None:
    label = f"{row['workload']:50} {row['engine']:18}"
    if row["value"] is None:
        print(f"{label} -- {row['reason']}", flush=True)
        return
    memory = f"  {row['memory_mib']:.0f} MiB" if "memory_mib" in row else ""
    print(
        f"{label} {row['value']:9.1f} {row['unit']}  floor {row['floor']:.1f}"
        f"  {row['share_of_floor']:.1%}{memory}",
        flush=True,
    )


def compile_first(tuning: bool) -> None:
    """Fill Triton's cache in parallel, before CUDA starts."""
    calls: list[Callable[[], object]] = [
        partial(_on_meta, 64, 2, 64, None, group=group, split=split)
        for group in (2, 4)
        for split in (None, 0)
    ]
    calls += [partial(_on_meta, 3, 1, 64, None, group=group) for group in (2, 4)]
    if tuning:
        calls += [
            partial(_on_meta, 64, 2, 64, tiles, group=group, split=split)
            for group, tiles, split in itertools.product((2, 4), SPLIT_LAUNCHES, SPLITS)
        ]
    for block, rows, tokens in itertools.product((64, 128, 256), (1, 4), (8, 8192)):
        launches: list[Tiles | None] = [None, *(LAUNCHES if tuning else ())]
        calls.extend(partial(_on_meta, tokens, rows, block, tiles) for tiles in launches)
    for fault in precompile(calls):
        print("not compiled:", fault, flush=True)


def _on_meta(
    tokens: int,
    rows: int,
    block: int,
    tiles: Tiles | None,
    *,
    group: int = GROUP,
    split: int | None = None,
) -> Tensor:
    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    cache = empty(8, KV_HEADS, block, HEAD_DIM)
    q = empty(tokens, group * KV_HEADS, HEAD_DIM)
    tables, lens = empty(rows, 64, dtype=torch.int32), empty(rows + 1, dtype=torch.int32)
    return prefill_attention(
        q, cache, cache, tables, lens, lens[1:], SCALE, tokens, max(4096, tokens),
        tiles=tiles, split=split,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Causal prefill attention on a GPU.")
    parser.add_argument("--quick", action="store_true", help="few cases, under a minute")
    parser.add_argument("--tune", action="store_true", help="try launch shapes, write nothing")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/prefill.json"))
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

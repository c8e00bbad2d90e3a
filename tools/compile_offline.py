"""Compile every Triton kernel on a machine with no GPU, and report what the code costs.

    python tools/compile_offline.py [--only WORD] [--arch 90] [--json FILE]

Registers, shared memory, spills and matrix instructions are read from the machine code. The
launches compiled are those of the public functions themselves, called on meta tensors, so what is
reported is what will run. Exits 1 if a hot configuration spills, or if any kernel asks for more
shared memory than the device gives a program (an offline compile does not check that).

To register kernels, write a function that calls them (tensors from `empty`) and decorate it with
`@cases(hot=...)`; import the kernels inside it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel's module is imported

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from quire.kernels import support

SHARED_LIMITS = {  # bytes that a program may use
    **dict.fromkeys((90, 100), support.HOPPER_SHARED),
    **dict.fromkeys((86, 89, 120), 101_376),
    80: 166_912,
}
_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class OfflineDriver:
    """Stands in for the CUDA driver: enough for compiling, nothing for launching."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty


@dataclass(frozen=True)
class Report:
    """What one compiled kernel uses; sizes in bytes, counts of instructions in the code."""

    case: str
    kernel: str
    hot: bool
    warps: int
    stages: int
    registers: int
    shared: int
    spill_stores: int
    spill_loads: int
    wgmma: int
    mma: int
    cp_async: int
    tma: int
    wide_loads: int
    seconds: float
    arch: int

    @property
    def fault(self) -> str:
        """Why this kernel must not ship, or nothing. Spills are looked at on sm_90 alone."""
        limit = SHARED_LIMITS[self.arch]
        if self.shared > limit:
            return f"shared memory {self.shared} > {limit}"
        if self.arch == 90 and self.hot and self.spill_stores + self.spill_loads:
            return f"{self.spill_stores} spilled stores, {self.spill_loads} loads"
        return ""


Calls = Iterator[tuple[str, Callable[[], object]]]
_SOURCES: list[tuple[Callable[[], Calls], bool]] = []


def cases(*, hot: bool) -> Callable[[Callable[[], Calls]], Callable[[], Calls]]:
    """Register a generator of (name, call that launches kernels). hot: a spill is a fault."""

    def register(source: Callable[[], Calls]) -> Callable[[], Calls]:
        _SOURCES.append((source, hot))
        return source

    return register


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without memory: aligned and contiguous, as the compiler sees it."""
    return torch.empty(*shape, dtype=dtype, device="meta")


@contextmanager
def recorded_launches() -> Iterator[list[tuple[Any, float]]]:
    """Compile instead of launching; collects (compiled kernel, seconds), each kernel once."""
    found: list[tuple[Any, float]] = []
    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        del warmup
        if driver.active.get_current_target().arch < 90:  # which know no dependent launch
            options |= dict.fromkeys({"PDL", "launch_pdl"} & options.keys(), False)
        start = time.perf_counter()
        compiled = original(self, *args, grid=grid, warmup=True, **options)
        if all(compiled is not other for other, _ in found):
            found.append((compiled, time.perf_counter() - start))
        return compiled

    JITFunction.run = run
    try:
        yield found
    finally:
        JITFunction.run = original


def _dump(cubin: Path, option: str) -> str:
    command = [str(_BIN / "cuobjdump"), option, str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def report(compiled: Any, *, case: str, hot: bool, seconds: float) -> Report:
    """Read the machine code of one compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = dict(re.findall(r"(REG|SHARED):(\d+)", _dump(cubin, "--dump-resource-usage")))
        code = _dump(cubin, "-sass")

    def count(pattern: str) -> int:
        return len(re.findall(pattern, code))

    return Report(
        case=case,
        kernel=compiled.metadata.name,
        hot=hot,
        warps=compiled.metadata.num_warps,
        stages=compiled.metadata.num_stages,
        registers=int(usage["REG"]),
        shared=compiled.metadata.shared,
        spill_stores=count(r"\bSTL\b"),
        spill_loads=count(r"\bLDL\b"),
        wgmma=count(r"\bHGMMA\b"),
        mma=count(r"\bHMMA\b"),
        cp_async=count(r"\bLDGSTS\b"),
        tma=count(r"\bUTMALDG\b"),
        wide_loads=count(r"LDG\.E\.\S*128"),
        seconds=round(seconds, 2),
        arch=compiled.metadata.target.arch,
    )


def compile_all(only: str = "", *, hot_only: bool = False, arch: int = 90) -> Iterator[Report]:
    """Compile every registered call whose name contains `only`. Once a process for one arch: the
    kernels' modules, imported by the calls, take what they are told of the card then."""
    driver.set_active(OfflineDriver(arch))
    vars(support).update(
        before_hopper=lambda _device: arch < 90, shared_bytes=lambda _device: SHARED_LIMITS[arch]
    )
    for source, hot in _SOURCES:
        if hot_only and not hot:
            continue
        for name, call in source():
            if only not in name:
                continue
            with recorded_launches() as found:
                call()
            for compiled, seconds in found:
                yield report(compiled, case=name, hot=hot, seconds=seconds)


# ---------------------------------------------------------------- what is compiled


_INT = torch.int32


def _caches(blocks: int, kv_heads: int, block_size: int, dim: int, dtype: torch.dtype) -> Tensor:
    return empty(blocks, kv_heads, block_size, dim, dtype=dtype)


def _decode(
    rows: int,
    group: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype = torch.bfloat16,
    **launch: Any,
) -> Callable[[], object]:
    def call() -> object:
        from quire.kernels.attention.decode import decode_attention

        cache = _caches(64, 8, block_size, dim, dtype)
        q = empty(rows, 8 * group, dim, dtype=dtype)
        table, context = empty(rows, 64, dtype=_INT), empty(rows, dtype=_INT)
        return decode_attention(q, cache, cache, table, context, 0.1, 4096, **launch)

    return call


def _rope_decode(
    rows: int,
    group: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype = torch.bfloat16,
    **launch: Any,
) -> Callable[[], object]:
    def call() -> object:
        from quire.kernels.attention.decode import rope_decode_attention

        cache, norm = _caches(64, 8, block_size, dim, dtype), empty(dim, dtype=dtype)
        qkv = empty(rows, (8 * group + 16) * dim, dtype=dtype)
        angles = empty(4096, dim, dtype=torch.float32)
        ints, slots = empty(rows, dtype=_INT), empty(rows, dtype=torch.int64)
        table = empty(rows, 64, dtype=_INT)
        return rope_decode_attention(
            qkv, norm, norm, 1e-6, angles, ints, slots, cache, cache, table, ints, 0.1, 4096,
            **launch,
        )  # fmt: skip

    return call


@cases(hot=True)
def hot_decode() -> Calls:
    for name, make in (("decode", _decode), ("rope-decode", _rope_decode)):
        for level in (0, 1, 2):
            for group in (2, 4):
                for pdl in (False, True):
                    yield (
                        f"{name} D128 G{group} level {level} pdl {pdl}",
                        make(64, group, 128, 64, level=level, pdl=pdl),
                    )
        for group in (2, 4):
            yield f"{name} D128 G{group}, 32 rows", make(32, group, 128, 64, pdl=True)
        yield f"{name} D64 G2 block 16", make(64, 2, 64, 16)


@cases(hot=False)
def other_decode() -> Calls:
    for dim in (16, 32, 96, 256):
        yield f"decode D{dim}", _decode(64, 2, dim, 64)
        yield f"rope-decode D{dim}", _rope_decode(64, 2, dim, 64)
    for block_size in (16, 32, 128, 256):
        yield f"decode block {block_size}", _decode(64, 2, 128, block_size)
    for dtype in (torch.float16, torch.float32):
        for dim in (64, 128, 256):
            yield f"decode {dtype} D{dim}", _decode(64, 16, dim, 64, dtype)
            yield f"rope-decode {dtype} D{dim}", _rope_decode(64, 16, dim, 64, dtype)


def _prefill(
    tokens: int,
    rows: int,
    group: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    cached: int = 0,
    **launch: Any,
) -> Callable[[], object]:
    def call() -> object:
        from quire.kernels.attention.prefill import prefill_attention

        cache = _caches(64, 8, block_size, dim, dtype)
        q = empty(tokens, 8 * group, dim, dtype=dtype)
        table, starts = empty(rows, 64, dtype=_INT), empty(rows + 1, dtype=_INT)
        context = empty(rows, dtype=_INT)
        longest = tokens - rows + 1
        return prefill_attention(
            q, cache, cache, table, starts, context, 0.1, longest, cached + longest, **launch
        )

    return call


@cases(hot=True)
def hot_prefill() -> Calls:
    for group in (2, 4):
        for block_size in (64, 128):
            for tokens in (128, 8192):
                yield (
                    f"prefill D128 G{group} block {block_size} tokens {tokens}",
                    _prefill(tokens, 4, group, 128, block_size),
                )
    for group in (2, 4):
        for tokens in (4, 64):  # short rows' tiles, and the others', split
            for pdl in (False, True):
                yield (
                    f"prefill D128 G{group} split tokens {tokens} pdl {pdl}",
                    _prefill(tokens, 2, group, 128, 64, cached=4096, pdl=pdl),
                )
    yield "prefill D64 G2 block 16", _prefill(8192, 4, 2, 64, 16)


@cases(hot=False)
def other_prefill() -> Calls:
    for dim in (16, 32, 96, 256):
        yield f"prefill D{dim}", _prefill(8192, 4, 2, dim, 64)
        yield f"prefill D{dim} split", _prefill(64, 2, 2, dim, 64, cached=4096)
    for block_size in (16, 32, 256):
        yield f"prefill block {block_size}", _prefill(8192, 4, 2, 128, block_size)
    for dtype in (torch.float16, torch.float32):
        for dim in (64, 128, 256):
            yield f"prefill {dtype} D{dim}", _prefill(8192, 4, 16, dim, 64, dtype)
            yield f"prefill {dtype} D{dim} split", _prefill(8, 1, 16, dim, 64, dtype, cached=4096)


def _rope(
    tokens: int, group: int, dim: int, dtype: torch.dtype, pdl: bool = False
) -> Callable[[], object]:
    def call() -> object:
        from quire.kernels.attention.qk_norm_rope import qk_norm_rope_kv_write

        cache, norm = _caches(64, 8, 64, dim, dtype), empty(dim, dtype=dtype)
        qkv = empty(tokens, (8 * group + 16) * dim, dtype=dtype)
        angles = empty(4096, dim, dtype=torch.float32)
        positions, slots = empty(tokens, dtype=_INT), empty(tokens, dtype=torch.int64)
        return qk_norm_rope_kv_write(
            qkv, norm, norm, 1e-6, angles, positions, slots, cache, cache, pdl=pdl
        )

    return call


@cases(hot=True)
def hot_rope() -> Calls:
    for tokens in (1, 64, 8192):
        for pdl in (False, True):
            yield f"rope D128 tokens {tokens} pdl {pdl}", _rope(tokens, 2, 128, torch.bfloat16, pdl)


@cases(hot=False)
def other_rope() -> Calls:
    for dim in (16, 32, 64, 96, 256):
        yield f"rope D{dim}", _rope(8192, 4, dim, torch.bfloat16)
    yield "rope float32", _rope(8192, 4, 128, torch.float32)


@cases(hot=True)
def hot_copy() -> Calls:
    def call() -> None:
        from quire.kernels.state.copy_blocks import copy_blocks

        cache, ids = empty(28, 64, 8, 64, 128, dtype=torch.bfloat16), empty(3, dtype=torch.int64)
        copy_blocks(cache, cache, ids, ids)

    yield "copy blocks", call


@cases(hot=True)
def products() -> Calls:
    from tune_linear import SHAPES
    from tune_linear import products as products_of

    from quire.kernels.linear import linear, skinny, tuning

    counters = skinny.new_counters(torch.device("meta"))
    shared = support.shared_bytes(torch.device("meta"))
    seen = set()
    for card in tuning.tables():
        for product in (one for shape in SHAPES for one in products_of(shape)):
            for bucket in tuning.table(card).get((product.n, product.k), {}):
                variant = tuning.choose(
                    product.n, product.k, bucket, torch.bfloat16, product.silu, shared, card
                )
                if variant == tuning.Library() or (product.n, product.k, bucket, variant) in seen:
                    continue
                seen.add((product.n, product.k, bucket, variant))

                def call(
                    variant: Any = variant, product: Any = product, bucket: int = bucket
                ) -> None:
                    linear.run(
                        variant,
                        empty(bucket, product.k),
                        empty(product.n, product.k),
                        norm_weight=empty(product.k) if product.norm else None,
                        eps=1e-6,
                        residual=empty(bucket, product.columns) if product.residual else None,
                        silu=product.silu,
                        out_dtype=product.out_dtype,
                        counters=counters,
                        pdl=True,
                    )

                yield f"linear {product.name} {product.n} x {product.k}, {bucket} rows", call


@cases(hot=True)
def norms_sampling_state() -> Calls:
    from quire.kernels.linear import norms
    from quire.kernels.sampling import filtering, sampling
    from quire.kernels.state import state

    rows, vocab = 256, 151_936
    logits, slots = empty(rows, vocab, dtype=torch.float32), empty(rows, dtype=torch.int64)
    amount, ints = empty(257, dtype=torch.float32), empty(257, dtype=torch.int32)
    seeds, tables = empty(257, dtype=torch.int64), empty(257, 64, dtype=torch.int32)
    prompt = empty(257, vocab, dtype=torch.bool)
    counts = empty(257, vocab, dtype=torch.int32)
    out, mapping = empty(rows, dtype=torch.int32), empty(rows, dtype=torch.int64)
    yield "rms_norm", lambda: norms.rms_norm(empty(rows, 4096), empty(4096), 1e-6)
    yield "silu_mul", lambda: norms.silu_mul(empty(rows, 6144))
    yield "greedy", lambda: sampling.greedy(logits)
    yield "sample", lambda: sampling.sample(logits, slots, slots, amount, seeds)
    yield (
        "apply_penalties",
        lambda: sampling.apply_penalties(logits, slots, prompt, counts, amount, amount, amount),
    )
    yield "mask_stop_tokens", lambda: sampling.mask_stop_tokens(logits, slots, slots, tables, ints)
    yield (
        "filter_logits",
        lambda: filtering.filter_logits(logits, slots, amount, ints, amount, amount),
    )
    yield (
        "prepare_decode",
        lambda: state.prepare_decode(
            slots, ints, ints, tables, 64, out, out, mapping, out, tables[:rows]
        ),
    )
    yield (
        "prepare_mixed",
        lambda: state.prepare_mixed(
            slots, ints, ints, ints, tables, 64, out, out, mapping, out, tables[:rows]
        ),
    )
    yield "advance", lambda: state.advance(slots, None, ints, None, slots, ints, counts)


def _print(row: Report) -> None:
    print(
        f"{row.case:44} {row.kernel:26} {row.warps:2}w {row.stages}s {row.registers:3} regs"
        f" {row.shared:6} B shared  spill {row.spill_stores}/{row.spill_loads}"
        f"  wgmma {row.wgmma} mma {row.mma} cp.async {row.cp_async} tma {row.tma}"
        f" ldg128 {row.wide_loads}  {row.seconds} s  {row.fault}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--hot", action="store_true", help="hot cases alone")
    parser.add_argument("--arch", type=int, default=90, choices=SHARED_LIMITS, help="90 is sm_90")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    rows = []
    for row in compile_all(options.only, hot_only=options.hot, arch=options.arch):
        _print(row)
        rows.append(row)
    if options.json:
        options.json.write_text(
            json.dumps([asdict(r) | {"fault": r.fault} for r in rows], indent=1)
        )
    return 1 if any(row.fault for row in rows) or not rows else 0


if __name__ == "__main__":
    sys.exit(main())

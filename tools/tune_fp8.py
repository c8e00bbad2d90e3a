"""Times the kernels of FP8 products on this card, to say which of them a shape should take.

    python tools/tune_fp8.py [--shape 8B] [--rows 1 8 64 256 8192] [--json FILE]

Each candidate is timed with what stands around it in the model (norm and quantization, SiLU·mul,
residual), in a captured chain over distinct weights (cold caches), checked against the twin, and
given as a share of its floor: the weight's bytes or the arithmetic at what the card measures.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import torch
from cards import Card, this_card
from common import capture, precompile, replay_us
from linear_candidates import Product, products
from torch import Tensor
from tune_linear import tensors_of

from quire.kernels import reference
from quire.kernels.linear import fp8_gemv, fp8_linear, tuning
from quire.kernels.linear.fp8_tuning import Fp8Gemv, Fp8Library, Fp8Tile, Fp8Variant, choose, turns
from quire.kernels.support import HOPPER_SHARED
from quire.kernels.weight import Weight

_COLD_BYTES = 300 << 20  # weights of one chain: well above the L2 cache
_ROWS = (1, 8, 64, 256, 8192)


def candidates(product: Product, rows: int) -> Iterator[Fp8Variant]:
    """What may be fast, the rule's own choice first."""
    found: dict[Fp8Variant, None] = {choose(product.n, product.k, rows, product.silu): None}
    found |= dict.fromkeys(_listed(product, rows))
    for variant in found:
        if isinstance(variant, Fp8Tile):
            stage = variant.stage_bytes(product.silu)
            if variant.stages * stage > HOPPER_SHARED:
                continue
            if product.k < 1024 * variant.split:
                continue
        yield variant


def _listed(product: Product, rows: int) -> Iterator[Fp8Variant]:
    if rows == 1:
        for block_n in (1, 2, 4, 8, 16):
            for warps in (4, 8, 16):
                if fp8_gemv.held(product.k, block_n, warps, product.silu) <= 128:
                    for at_once in (8, 16, 24, 32, 64):
                        count = turns(product.n, block_n, warps, product.silu, at_once)
                        yield Fp8Gemv(block_n, warps, count)
    if rows <= 64:
        block_m = max(16, 1 << (rows - 1).bit_length())
        for split in (1, 2, 4, 8):
            yield Fp8Tile(block_m, 64, True, 6, 4, split)
            yield Fp8Tile(block_m, 128, True, 4, 4, split)
            yield Fp8Tile(block_m, 128, True, 6, 4, split)
            yield Fp8Tile(block_m, 32, False, 8, 4, split)
            yield Fp8Tile(block_m, 64, True, 4, 4, split)
            if rows > 32:
                yield Fp8Tile(block_m, 128, True, 4, 8, split)
                yield Fp8Tile(block_m, 128, False, 4, 4, split)
                yield Fp8Tile(block_m, 64, False, 6, 4, split)
                yield Fp8Tile(block_m, 64, False, 4, 8, split)
                yield Fp8Tile(block_m, 128, False, 2, 8, split)
    else:
        for split in (1, 2) if rows <= 256 else (1,):
            yield Fp8Tile(128, 64, True, 4, 4, split)
            yield Fp8Tile(128, 64, False, 3, 8, split)
            yield Fp8Tile(128, 128, False, 3, 8, split)
            yield Fp8Tile(128, 128, False, 4, 8, split)
            yield Fp8Tile(128, 128, True, 3, 8, split)
            yield Fp8Tile(64, 128, False, 4, 4, split)
            yield Fp8Tile(64, 128, True, 4, 8, split)
        yield Fp8Tile(256, 64, False, 3, 8)
        yield Fp8Tile(256, 64, True, 4, 8)
        yield Fp8Library()


def _call(variant: Fp8Variant, product: Product, given: dict[str, Tensor], w: Weight) -> Tensor:
    return fp8_linear.run(
        variant,
        given["x"],
        w,
        norm_weight=given["norm"] if product.norm else None,
        eps=1e-6,
        residual=given["residual"] if product.residual else None,
        silu=product.silu,
        counters=given["counters"],
        pdl=tuning.chains(w.data, given["x"].shape[0]),
    )


def _weights(product: Product, device: str) -> list[Weight]:
    """Distinct ones, of random bits that are finite."""
    size = product.n * product.k
    count = 1 if device == "meta" else max(2, min(16, -(-_COLD_BYTES // size)))
    made = []
    for _ in range(count):
        scale = torch.empty(-(-product.n // 128), -(-product.k // 128), device=device)
        data = torch.empty(product.n, product.k, dtype=torch.float8_e4m3fn, device=device)
        if device != "meta":
            bits = torch.randint(0, 256, data.shape, dtype=torch.uint8, device=device)
            bits.masked_fill_(bits & 0x7F >= 0x78, 3)
            data = bits.view(torch.float8_e4m3fn)
            scale.uniform_(0.5, 1.5).mul_(1e-3)
        made.append(Weight(data, scale))
    return made


def compilations(pairs: list[tuple[Product, int]]) -> list[Callable[[], object]]:
    calls: list[Callable[[], object]] = []
    seen: set[Any] = set()
    for product, rows in pairs:
        given, weight = tensors_of(product, rows, "meta"), _weights(product, "meta")[0]
        for variant in candidates(product, rows):
            if (product.name, variant) not in seen:
                seen.add((product.name, variant))
                calls.append(lambda v=variant, p=product, g=given, w=weight: _call(v, p, g, w))
    return calls


def _each(call: Callable[[Weight], object], weights: list[Weight]) -> None:
    for weight in weights:
        call(weight)


def times(product: Product, rows: int) -> list[tuple[float, Fp8Variant]]:
    """(microseconds, variant) of each candidate that runs and is right, the fastest first."""
    given, weights = tensors_of(product, rows, "cuda"), _weights(product, "cuda")
    around = {
        "norm_weight": given["norm"] if product.norm else None,
        "eps": 1e-6,
        "silu": product.silu,
    }
    few = {"x": given["x"][:64], "residual": given["residual"][:64]}
    residual = few["residual"] if product.residual else None
    wanted = reference.linear_fp8(few["x"], weights[0], residual=residual, **around)
    found, untouched = [], given["residual"].clone()
    for variant in candidates(product, rows):
        try:
            fresh = given | {"residual": untouched.clone()}
            made = _call(variant, product, fresh, weights[0])[:64]
            error = (made.float() - wanted.float()).norm() / wanted.float().norm()
            if not error < 1e-2:
                print(f"WRONG {product.name} {rows} {variant} error {error:.4f}", flush=True)
                continue
            call = partial(_call, variant, product, given)
            graph = capture(partial(_each, call, weights))
        except Exception as error:
            print(f"FAILED {product.name} {rows} {variant}: {error!r:.150}", flush=True)
            continue
        found.append((statistics.median(replay_us(graph, 5)) / len(weights), variant))
        given["residual"].copy_(untouched)
    return sorted(found, key=lambda one: one[0])


def floor_us(product: Product, rows: int, card: Card) -> float:
    """Bytes of the weight, or arithmetic, whichever takes longer."""
    size = product.n * product.k
    return max(size / card.copy_bytes, 2 * rows * size / card.fp8_flops) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", default="8B")
    parser.add_argument("--rows", nargs="+", type=int, default=list(_ROWS))
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    listed = products(options.shape)[:-1]  # the head is never FP8
    calls = compilations([(p, rows) for p in listed for rows in options.rows])
    for fault in precompile(calls, options.processes)[:5]:
        print(fault, flush=True)
    card = this_card()
    rows_made: list[dict[str, Any]] = []
    for rows in options.rows:
        total = floor = 0.0
        for product in listed:
            found, least = times(product, rows), floor_us(product, rows, card)
            total, floor = total + found[0][0], floor + least
            words = " | ".join(f"{us:.1f} {_short(variant)}" for us, variant in found[:3])
            print(f"{product.name} {rows}: floor {least:.1f} {words}", flush=True)
            rows_made.append(
                {
                    "product": product.name,
                    "rows": rows,
                    "floor_us": round(least, 2),
                    "us": {_short(variant): round(us, 2) for us, variant in found},
                }
            )
        print(f"layer at {rows} rows: {total:.1f} us, {floor / total:.0%} of the floor", flush=True)
        if options.json:
            document = {"card": card.fields(), "rows": rows_made}
            options.json.write_text(json.dumps(document, indent=1) + "\n")


def _short(variant: Fp8Variant) -> str:
    if isinstance(variant, Fp8Library):
        return "library"
    if isinstance(variant, Fp8Gemv):
        return f"gemv {variant.block_n} {variant.warps}w x{variant.turns}"
    v = variant
    swap = "s" if v.swap else "n"
    return f"{v.block_m}x{v.block_n}{swap} {v.stages}st {v.warps}w /{v.split}"


if __name__ == "__main__":
    main()

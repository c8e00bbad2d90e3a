"""Times the products of a mixture of experts by many tiles, and what a layer of it takes.

    python tools/tune_experts.py                    # on the GPU; the shape 30B-A3B, a minute
    python tools/tune_experts.py --rows 1 64 --json FILE

Each candidate is checked against the first of its kind, whose bits it must have, and timed in a
captured chain whose calls meet other experts (cold caches). Shares are of the floor: the weights of
the experts met, read once, or the arithmetic, at the card's own rates. What wins stands in
kernels/experts/tiles.py. Kernels are compiled in forked processes before the device is touched.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import torch
from cards import Card, this_card
from common import chain_us, precompile
from torch import Tensor

from quire.engine.model.config import ModelConfig
from quire.kernels.experts import mixing, products, products_fp8, routing, sorting, tiles
from quire.kernels.experts.tiles import Mix, Tile
from quire.kernels.linear import norms
from quire.kernels.linear.fp8_quantize import quantize
from quire.kernels.support import HOPPER_SHARED
from quire.kernels.weight import Weight

ROWS = (1, 8, 64, 256, 4096)
CALLS = 8  # of one chain, each of other tokens


@dataclass(frozen=True)
class Shape:
    """A layer of experts."""

    hidden: int
    inner: int
    count: int
    per_token: int

    @classmethod
    def of(cls, name: str) -> "Shape":
        """That of a model's name."""
        config = ModelConfig.named_shape(name)
        assert config.experts is not None
        experts = config.experts
        return cls(config.hidden_size, experts.intermediate_size, experts.count, experts.per_token)


def blocks(rows: int, shape: Shape) -> list[int]:
    """Rows a tile worth trying: 1 stands for unsorted pairs."""
    mean = rows * shape.per_token / shape.count
    found = [1] if rows <= 16 else []
    found += [
        m for m, least, most in ((16, 0, 30), (32, 3, 64), (64, 12, 400)) if least <= mean <= most
    ]
    return found + ([128] if mean >= 48 else [])


def narrow(weight: Tensor) -> Weight:
    """A weight in FP8, as good as another for timing: rounded, with scales near one."""
    scale = torch.full(
        (weight.shape[0], weight.shape[1] // 128, weight.shape[2] // 128), 0.9, device=weight.device
    )
    return Weight(weight.to(torch.float8_e4m3fn), scale)


def fp8_candidates(block_m: int) -> Iterator[Tile]:
    """The same for FP8 weights, a group of 128 columns a step."""
    for block_n, stages in ((64, 4), (64, 6), (64, 8), (128, 3), (128, 4), (128, 5)):
        for warps in (4,) if block_m <= 32 else (4, 8):
            yield Tile(block_n, 128, stages, warps, block_m <= 32)
            yield Tile(block_n, 128, stages, warps, block_m <= 32, boxed=True)
            if block_n == 128 and block_m > 32:
                yield Tile(block_n, 128, stages, warps, False, boxed=True, turns=4)


def candidates(block_m: int) -> Iterator[Tile]:
    """Tiles that may win with so many rows."""
    if block_m <= 32:
        for block_n, block_k, stages in (
            (64, 128, 3), (64, 128, 4), (64, 128, 6), (64, 256, 3), (128, 64, 4), (128, 128, 3),
        ):  # fmt: skip
            yield Tile(block_n, block_k, stages, 4, True)
            yield Tile(block_n, block_k, stages, 4, True, boxed=True)
        if block_m == 16:
            for block_n, block_k, stages in ((16, 256, 4), (32, 128, 4), (32, 256, 3)):
                yield Tile(block_n, block_k, stages, 4, False)
    elif block_m == 64:
        for block_n, stages, warps, swap in (
            (64, 4, 4, True), (64, 4, 4, False), (128, 4, 4, False), (128, 4, 8, True),
            (128, 3, 8, False), (256, 3, 8, False),
        ):  # fmt: skip
            yield Tile(block_n, 64, stages, warps, swap)
            yield Tile(block_n, 64, stages, warps, swap, boxed=True)
    else:
        for block_n, stages, warps in (
            (64, 4, 8),
            (128, 3, 8),
            (128, 4, 8),
            (256, 3, 8),
            (256, 4, 8),
        ):
            yield Tile(block_n, 64, stages, warps, False)
            yield Tile(block_n, 64, stages, warps, False, boxed=True)


def fits(tile: Tile, block_m: int, *, silu: bool, fp8: bool) -> bool:
    """Within shared memory and registers."""
    size = 1 if fp8 else 2
    matrices = 2 if silu else 1
    rows = max(block_m, 16)
    if tile.stages * tile.stage_bytes(rows, matrices, size) > HOPPER_SHARED - 4096:
        return False
    return rows * tile.block_n * matrices <= (64 if fp8 else 128) * 32 * tile.warps


class Layer:
    """Weights of one layer, and tokens for each call of a chain."""

    def __init__(self, shape: Shape, rows: int, device: torch.device, *, fp8: bool) -> None:
        self.shape, self.rows, self.fp8 = shape, rows, fp8
        draw = {"dtype": torch.bfloat16, "device": device}
        s = shape
        self.gate_up = torch.empty(s.count, 2 * s.inner, s.hidden, **draw)
        self.down = torch.empty(s.count, s.hidden, s.inner, **draw)
        self.router = torch.empty(s.count, s.hidden, **draw)
        self.x = torch.empty(CALLS, rows, s.hidden, **draw)
        self.inner = torch.empty(rows * s.per_token, s.inner, **draw)
        self.experts = self._choices(device)
        self.weights = torch.empty(rows, s.per_token, device=device)
        if device.type == "cuda":
            for tensor in (self.gate_up, self.down, self.router):
                tensor.normal_().mul_(0.02)
            for tensor in (self.x, self.inner, self.weights):
                tensor.normal_()
        if fp8:
            self.gate_up_fp8, self.down_fp8 = narrow(self.gate_up), narrow(self.down)
            self.gate_up = self.down = self.router  # their memory is not needed
            self.x_fp8 = [quantize(one) for one in self.x]
            self.inner_fp8 = quantize(self.inner)

    def _choices(self, device: torch.device) -> list[Tensor]:
        """Of each call. Few rows meet other experts in each."""
        s = self.shape
        if device.type == "meta":
            return [torch.empty(self.rows, s.per_token, dtype=torch.int64, device=device)] * CALLS
        generator = torch.Generator().manual_seed(self.rows)
        order = torch.rand(CALLS, self.rows, s.count, generator=generator).argsort(-1)
        chosen = order[..., : s.per_token]
        if self.rows == 1:
            chosen = torch.arange(CALLS * s.per_token).view(CALLS, 1, -1) % s.count
        return list(chosen.contiguous().to(device))

    def product(self, tile: Tile, block_m: int, *, silu: bool) -> Callable[[int], Tensor]:
        """One product of call i, on an order that is there."""
        s, pairs = self.shape, self.rows * self.shape.per_token
        pdl = tiles.chains(self.rows)
        rows = max(block_m, 16)
        orders = [sorting.sort(e, s.count, rows) if block_m > 1 else None for e in self.experts]
        out = self.x.new_empty(pairs, s.inner if silu else s.hidden)
        around: dict[str, Any] = {"silu": silu, "pdl": pdl}

        def call(i: int) -> Tensor:
            given = (out, self.experts[i], orders[i], tile, rows)
            if self.fp8:
                taken = self.x_fp8[i] if silu else self.inner_fp8
                held = self.gate_up_fp8 if silu else self.down_fp8
                products_fp8.grouped_fp8(taken, held, *given, **around)
            else:
                x, weight = (self.x[i], self.gate_up) if silu else (self.inner, self.down)
                products.grouped(x, weight, *given, **around)
            return out

        return call

    def floor_us(self, card: Card, *, silu: bool) -> float:
        """Microseconds that one product takes at least, mean of the calls."""
        s, parameters = self.shape, (2 if silu else 1) * self.shape.inner * self.shape.hidden
        met = statistics.mean(len(e.unique()) for e in self.experts)
        flops = 2 * parameters * self.rows * s.per_token
        size, faster = (1, 2) if self.fp8 else (2, 1)  # bytes a number; the arithmetic's rate
        read = met * parameters * size / card.copy_bytes
        return max(read, flops / (faster * card.matmul_flops)) * 1e6


def tune(layer: Layer, card: Card, *, silu: bool) -> list[dict[str, Any]]:
    """Times of every candidate, the best first. off: from the bits of the first of its kind (a
    sorted second product's input stands in another order than an unsorted one's)."""
    found: list[dict[str, Any]] = []
    bits: dict[bool, Tensor] = {}
    floor = layer.floor_us(card, silu=silu)
    for block_m in blocks(layer.rows, layer.shape):
        for tile in (fp8_candidates if layer.fp8 else candidates)(block_m):
            if not fits(tile, block_m, silu=silu, fp8=layer.fp8):
                continue
            row = {
                "rows": layer.rows,
                "fp8": layer.fp8,
                "silu": silu,
                "block_m": block_m,
                **dataclasses.asdict(tile),
            }
            try:
                call = layer.product(tile, block_m, silu=silu)
                made = _by_pair(call(0), layer, block_m, silu=silu)
                first = bits.setdefault(silu or block_m > 1, made)
                row["off"] = float((made.float() - first.float()).abs().max())
                us = statistics.median(
                    chain_us([lambda i=i, call=call: call(i) for i in range(CALLS)])
                )
                found.append(row | {"us": us, "share": floor / us})
            except Exception as error:
                print("failed", row, repr(error)[:200], flush=True)
    others = [row["off"] for row in found if row["off"]]
    if others:
        print(f"other bits: {len(others)} of {len(found)}, off by {max(others):.3g}", flush=True)
    return sorted(found, key=lambda row: row["us"])


def _by_pair(made: Tensor, layer: Layer, block_m: int, *, silu: bool) -> Tensor:
    """A result in the order of pairs, as the second product has it anyway."""
    if block_m == 1 or not silu:
        return made.clone()
    order = sorting.sort(layer.experts[0], layer.shape.count, block_m)
    out = torch.empty_like(made)
    out[order.pairs.long()] = made
    return out


def parts(layer: Layer, mix: Mix) -> dict[str, float]:
    """Microseconds of each part of a layer, and of all, as they are launched."""
    s, pdl = layer.shape, tiles.chains(layer.rows)
    norm = torch.ones(s.hidden, dtype=torch.bfloat16, device=layer.x.device)
    made = layer.x.new_empty(layer.rows * s.per_token, s.hidden)
    residual = layer.x.clone()

    def whole(i: int) -> Tensor:
        x = norms.rms_norm(layer.x[i], norm, 1e-6, pdl=pdl)
        _, weights = routing.route(x, layer.router, s.per_token, renormalise=True, pdl=pdl)
        chosen, around = (layer.experts[i], weights), {"residual": residual[i], "pdl": pdl}
        if layer.fp8:
            return mixing.run_fp8(mix, x, layer.gate_up_fp8, layer.down_fp8, *chosen, **around)
        return mixing.run(mix, x, layer.gate_up, layer.down, *chosen, **around)

    calls: dict[str, Callable[[int], object]] = {
        "norm": lambda i: norms.rms_norm(layer.x[i], norm, 1e-6, pdl=pdl),
        "route": lambda i: routing.route(
            layer.x[i], layer.router, s.per_token, renormalise=True, pdl=pdl
        ),
        "sum": lambda i: mixing.add_up(made, layer.weights, residual[i], residual[i], pdl=pdl),
        "whole": whole,
    }
    if mix.is_sorted:
        calls["sort"] = lambda i: sorting.sort(layer.experts[i], s.count, mix.block_m, pdl=pdl)
    return {
        name: round(
            statistics.median(chain_us([lambda i=i, call=call: call(i) for i in range(CALLS)])), 2
        )
        for name, call in calls.items()
    }


def compile_ahead(shape: Shape, rows: tuple[int, ...], *, fp8: bool) -> list[str]:
    """Compile all candidates in forked processes; what failed."""
    calls: dict[tuple[Any, ...], Callable[[], object]] = {}

    def one(count: int, tile: Tile, block_m: int, silu: bool) -> None:
        layer = Layer(shape, count, torch.device("meta"), fp8=fp8)
        layer.product(tile, block_m, silu=silu)(0)

    for count in rows:
        for block_m in blocks(count, shape):
            for tile in (fp8_candidates if fp8 else candidates)(block_m):
                for silu in (True, False):
                    if fits(tile, block_m, silu=silu, fp8=fp8):
                        key = (block_m, tile, silu, tiles.chains(count))
                        calls.setdefault(key, partial(one, count, tile, block_m, silu))
    return precompile(list(calls.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", default="30B-A3B")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--fp8", action="store_true", help="weights in FP8")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shape = Shape.of(options.shape)
    for fault in compile_ahead(shape, tuple(options.rows), fp8=options.fp8):
        print("not compiled:", fault)
    card, results = this_card(), []
    print(f"{card.name} {card.copy_bytes / 1e12:.2f} TB/s {card.matmul_flops / 1e12:.0f} TFLOP/s")
    for rows in options.rows:
        layer = Layer(shape, rows, torch.device("cuda"), fp8=options.fp8)
        best: dict[tuple[int, bool], dict[str, Any]] = {}
        for silu in (True, False):
            for row in tune(layer, card, silu=silu):
                results.append(row)
                best.setdefault((row["block_m"], silu), row)
        results += report(layer, card, best)
        del layer
    if options.json:
        options.json.write_text(json.dumps(results))


def report(
    layer: Layer, card: Card, best: dict[tuple[int, bool], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The best of each number of rows a tile, and a whole layer by them."""
    found = []
    floor = sum(layer.floor_us(card, silu=silu) for silu in (True, False))
    for block_m in blocks(layer.rows, layer.shape):
        both = [best.get((block_m, silu)) for silu in (True, False)]
        if None in both:
            continue
        names = [field.name for field in dataclasses.fields(Tile)]
        gate_up, down = (Tile(*(row[name] for name in names)) for row in both if row)
        mix = Mix(block_m > 1, max(16, block_m), gate_up, down)
        us = parts(layer, mix)
        said = " ".join(
            f"{name} {row['us']:.1f} {row['share']:.0%} n{row['block_n']} k{row['block_k']} "
            f"s{row['stages']} w{row['warps']}{' swap' * row['swap']}{' box' * row['boxed']};"
            for name, row in zip(("gate/up", "down"), both, strict=True)
            if row
        )
        print(f"{layer.rows} m{block_m}: {said} {us} share {floor / us['whole']:.0%}", flush=True)
        about = {"rows": layer.rows, "fp8": layer.fp8, "block_m": block_m, "floor_us": floor}
        found.append(about | us)
    return found


if __name__ == "__main__":
    main()

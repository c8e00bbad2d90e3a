"""The products of a model, and kernels that may be the fastest for each (see tune_linear.py)."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from quire.engine.model.config import ModelConfig
from quire.kernels.linear import gemv
from quire.kernels.linear.tuning import Gemv, Library, Skinny, Variant
from quire.kernels.support import HOPPER_SHARED

SPLITS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Product:
    """One product of a model: weight [n, k], and what stands around it."""

    name: str
    n: int
    k: int
    norm: bool = False
    residual: bool = False
    silu: bool = False
    out_dtype: torch.dtype | None = None

    @property
    def columns(self) -> int:
        return self.n // 2 if self.silu else self.n


def products(shape: str, ranks: int = 1) -> list[Product]:
    """The five products of a model; of several ranks, one rank's share, whose norms and residuals
    are the exchange's."""
    if ranks > 1:
        return _shares(shape, ranks)
    c = ModelConfig.named_shape(shape)
    q, kv, hidden = c.num_q_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.hidden_size
    inner = c.intermediate_size
    return [
        Product(f"{shape} qkv", q + 2 * kv, hidden, norm=True),
        Product(f"{shape} o", hidden, q, residual=True),
        Product(f"{shape} gate/up", 2 * inner, hidden, norm=True, silu=True),
        Product(f"{shape} down", hidden, inner, residual=True),
        Product(f"{shape} head", c.vocab_size, hidden, norm=True, out_dtype=torch.float32),
    ]


def _shares(shape: str, ranks: int) -> list[Product]:
    c, name = ModelConfig.named_shape(shape), f"{shape}/{ranks}"
    q, kv = c.num_q_heads // ranks, max(c.num_kv_heads // ranks, 1)
    inner, vocab = c.intermediate_size // ranks, -(-c.vocab_size // ranks)
    return [
        Product(f"{name} qkv", (q + 2 * kv) * c.head_dim, c.hidden_size),
        Product(f"{name} o", c.hidden_size, q * c.head_dim),
        Product(f"{name} gate/up", 2 * inner, c.hidden_size, silu=True),
        Product(f"{name} down", c.hidden_size, inner),
        Product(f"{name} head", vocab, c.hidden_size, norm=True, out_dtype=torch.float32),
    ]


def gemvs(product: Product, rows: int) -> Iterator[Variant]:
    """Matrix-vector kernels that hold their weights in registers."""
    if rows > gemv.MAX_ROWS:
        return
    for block_n in (1, 2, 4):
        for warps in (2, 4, 8, 16):
            held = block_n * product.k * (2 if product.silu else 1) // (32 * warps)
            if 8 <= held <= 64:
                yield Gemv(block_n, warps)


def _tiles(rows: int) -> Iterator[Skinny]:
    """Tiles that have won somewhere, or came near."""
    if rows <= 64:
        yield Skinny(16, 64, 128, swap=True, stages=4, warps=4)
        yield Skinny(16, 128, 64, swap=True, stages=5, warps=4)
        yield Skinny(16, 128, 64, swap=True, stages=8, warps=4)
        yield Skinny(16, 64, 256, swap=True, stages=3, warps=4)
        yield Skinny(16, 32, 128, swap=False, stages=4, warps=4)
        yield Skinny(16, 32, 256, swap=False, stages=3, warps=4)
        yield Skinny(16, 64, 128, swap=True, stages=6, warps=4)
        yield Skinny(16, 64, 128, swap=True, stages=4, warps=4, tiles=3)
        yield Skinny(16, 32, 128, swap=False, stages=4, warps=4, tiles=3)
    if rows <= 16:
        yield Skinny(16, 16, 256, swap=False, stages=4, warps=4)
    if 16 < rows <= 64:
        yield Skinny(32, 64, 128, swap=True, stages=4, warps=4)
        yield Skinny(32, 128, 64, swap=True, stages=5, warps=4)
        yield Skinny(32, 128, 64, swap=True, stages=8, warps=4)
        yield Skinny(32, 64, 128, swap=True, stages=6, warps=4)
        yield Skinny(32, 64, 128, swap=True, stages=3, warps=4, tiles=3)
    if rows > 32:
        yield Skinny(64, 64, 128, swap=True, stages=4, warps=4)
        yield Skinny(64, 32, 128, swap=False, stages=4, warps=4)
        yield Skinny(64, 64, 128, swap=False, stages=4, warps=4)
        yield Skinny(64, 128, 64, swap=False, stages=4, warps=4)
        yield Skinny(64, 128, 64, swap=False, stages=6, warps=4)
        yield Skinny(64, 128, 64, swap=True, stages=4, warps=4)
        yield Skinny(64, 128, 64, swap=True, stages=6, warps=4)
        yield Skinny(64, 64, 64, swap=True, stages=8, warps=4)
        yield Skinny(64, 64, 128, swap=True, stages=3, warps=8, tiles=3)
        yield Skinny(64, 64, 64, swap=True, stages=6, warps=4, tiles=3)
        yield Skinny(64, 128, 128, swap=True, stages=3, warps=8)
        yield Skinny(64, 128, 128, swap=True, stages=4, warps=8)
        yield Skinny(64, 256, 64, swap=True, stages=4, warps=8)
    if rows > 64:
        yield Skinny(128, 64, 64, swap=False, stages=4, warps=4)
        yield Skinny(128, 128, 64, swap=False, stages=4, warps=8)
        yield Skinny(128, 128, 64, swap=True, stages=4, warps=8)
        yield Skinny(128, 128, 128, swap=True, stages=3, warps=8)
        yield Skinny(128, 256, 64, swap=True, stages=3, warps=8)
        yield Skinny(128, 256, 64, swap=False, stages=3, warps=8)


def _skinnies(product: Product, rows: int, pdl: bool, tiles: Iterable[Skinny]) -> Iterator[Variant]:
    for tile in tiles:
        columns = tile.block_n * tile.tiles
        if tile.stages * tile.stage_bytes > HOPPER_SHARED:
            continue
        programs = -(-product.n // columns) * -(-rows // tile.block_m)
        for split in SPLITS:
            if split > 1 and (programs * split > 528 or product.k < split * 2 * tile.block_k):
                continue
            plain = dataclasses.replace(tile, split=split)
            yield plain
            if pdl and rows <= 16 and product.n * product.k * 2 < 24 << 20:
                yield dataclasses.replace(plain, prefetch=True)
            if product.norm and split == 1 and rows <= 64:
                fused = dataclasses.replace(plain, fuse_norm=True)
                yield fused
                if pdl and rows <= 16 and product.n * product.k * 2 < 24 << 20:
                    yield dataclasses.replace(fused, prefetch=True)


def candidates(
    product: Product, rows: int, pdl: bool, more: Sequence[Skinny] = ()
) -> list[Variant]:
    """The library first: others must beat it. more: tiles beside those that are always tried."""
    libraries = [Library()]
    if product.residual and rows > 64:
        libraries += [Library(split) for split in (2, 3, 4) if product.k % (split * 64) == 0]
    tiles = dict.fromkeys((*_tiles(rows), *more))
    return [*libraries, *gemvs(product, rows), *_skinnies(product, rows, pdl, tiles)]

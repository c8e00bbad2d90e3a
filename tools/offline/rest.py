"""Calls of all kernels but attention's: products, norms, sampling, state."""

from functools import partial
from typing import Any

import torch

from offline.compiling import Calls, cases, empty
from quire.kernels import support


@cases(hot=True)
def hot_copy() -> Calls:
    def call() -> None:
        from quire.kernels.state.copy_blocks import copy_blocks

        cache, ids = empty(28, 64, 8, 64, 128, dtype=torch.bfloat16), empty(3, dtype=torch.int64)
        copy_blocks(cache, cache, ids, ids)

    yield "copy blocks", call


@cases(hot=True)
def products() -> Calls:
    from linear_candidates import products as products_of
    from tune_linear import SHAPES

    from quire.kernels.linear import linear, skinny, tuning

    counters = skinny.new_counters(torch.device("meta"))
    shared = support.shared_bytes(torch.device("meta"))
    seen = set()
    for card in tuning.tables():
        for product in (
            p for shape in SHAPES for ranks in (1, 2) for p in products_of(shape, ranks)
        ):
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


@cases(hot=False)
def exact_products() -> Calls:
    """What exact mode launches by the tables. Not hot: shares of K one after another in the largest
    tile spill a total that only the end of a share reads."""
    from linear_candidates import products as products_of
    from tune_exact import EXACT, tensors_of
    from tune_linear import SHAPES

    from quire.kernels.linear import exact, tuning

    for card in tuning.tables():
        for product in (one for shape in SHAPES for one in products_of(shape)):
            size, shared = (product.n, product.k), support.shared_bytes(torch.device("meta"))
            weight = empty(*size)
            chosen = {
                bucket: exact.choose(*size, bucket, shared, card)
                for bucket in exact.order_of(*size, card).rows
            }
            for variant in dict.fromkeys(chosen.values()):
                if isinstance(variant, tuning.Library):
                    continue
                rows = max(bucket for bucket, one in chosen.items() if one == variant)
                tensors = tensors_of(product, rows, "meta")
                yield (
                    f"exact {product.name} {product.n} x {product.k}, {rows} rows",
                    partial(EXACT.call, variant, product, tensors, weight),
                )


@cases(hot=True)
def tall() -> Calls:
    """Products of many rows in Gluon, of every kind and height."""
    if not support.has_gluon(torch.device("meta")):
        return
    from quire.kernels.linear import hopper_tall, tall_launch

    x, weight, out = empty(3000, 1024), empty(4096, 1024), empty(3000, 4096)
    for groups in tall_launch.SHARES:
        shares = partial(hopper_tall.tall, split=4, residual=out, pdl=True)
        yield f"tall, shares, {groups} groups", partial(shares, x, weight, out, groups)
    for groups in tall_launch.SILU:
        half = empty(3000, 2048)
        gated = partial(hopper_tall.tall, x, weight, half, groups, silu=True, pdl=True)
        yield f"tall, SiLU, {groups} groups", gated


@cases(hot=True)
def row() -> Calls:
    """One row from attention to attention, in models of several sizes."""
    if not support.has_gluon(torch.device("meta")):
        return
    from linear_candidates import products as products_of

    from quire.kernels.linear import hopper_row
    from quire.kernels.linear.row_launch import Sizes, new_rooms
    from quire.kernels.weight import RowWeights

    for shape in ("1.7B", "4B", "8B", "32B"):
        qkv, o, gate_up, down = (empty(one.n, one.k) for one in products_of(shape)[:-1])
        norm = empty(len(o))
        weights = RowWeights(o, norm, gate_up, down, norm, qkv)
        sizes = Sizes.of(weights)
        room = new_rooms(1, sizes, torch.device("meta"))[0]
        x, residual = empty(1, sizes.attended), empty(1, sizes.hidden)
        call = partial(hopper_row.row, x, residual, weights, 1e-6, room, pdl=True)
        yield f"row, {shape}", call


@cases(hot=True)
def gpt2() -> Calls:
    """Of its smallest and its widest model, before a residual's first bias and behind it."""
    from quire.kernels.attention.kv_write import kv_write
    from quire.kernels.linear import layer_norm

    rows, slots = 256, empty(256, dtype=torch.int64)
    for hidden in (768, 1600):
        x, one = empty(rows, hidden), empty(hidden)
        cache = empty(64, hidden // 64, 16, 64)
        for add in (None, one):
            name = f"layer_norm {hidden}{'' if add is None else ', bias'}"
            yield name, partial(layer_norm.layer_norm, x, one, one, 1e-5, add=add, pdl=True)
        inner = empty(rows, 4 * hidden), empty(4 * hidden)
        yield f"gelu_new {hidden}", partial(layer_norm.gelu_new, *inner, pdl=True)
        qkv = empty(rows, 3 * hidden), empty(3 * hidden)
        yield f"kv_write {hidden}", partial(kv_write, *qkv, slots, cache, cache, pdl=True)


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
    yield "keep_allowed", lambda: sampling.keep_allowed(logits, out, tables)
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

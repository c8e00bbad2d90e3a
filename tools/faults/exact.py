"""Faults of exact mode: a token's bits would depend on what is computed beside it."""

from faults.fault import Fault

_TABLE = "tests/kernels/linear/test_exact.py::test_"
_TALL = "tests/kernels/linear/test_tall_launch.py::test_"
_FP8 = "tests/kernels/linear/test_fp8_exact.py::test_"
_MODE = "tests/engine/runner/test_exact_mode.py::test_"
_RUN = "tests/kernels/test_interpreted.py::test_triton_kernels_under_the_interpreter"
_PRODUCTS, _ATTENTION = (_RUN + "[linear]",), (_RUN + "[others]",)

FAULTS = (
    Fault(
        "exact: rows choose the split",
        "kernels/linear/exact.py",
        "    return Order(1, {bucket: v for bucket, v in rows.items() if keeps(v, k, 1)})\n",
        "    return Order(1, dict(rows))\n",
        (_TABLE + "no_number_of_rows_changes_the_order_of_a_weights_sums",),
    ),
    Fault(
        "exact: shares that a tile's step moves are taken for equal",
        "kernels/linear/exact.py",
        "    whole = k % (split * variant.block_k) == 0\n",
        "    whole = True\n",
        (_TABLE + "what_breaks_the_order_is_told",),
    ),
    Fault(
        "exact: tiles by descriptors add a residual to what was not rounded",
        "kernels/linear/linear.py",
        "counters=counters, apart=apart, **options)\n        return out\n",
        "counters=counters, **options)\n        return out\n",
        _PRODUCTS,
    ),
    Fault(
        "exact: the library is asked for numbers of rows that nobody compared",
        "kernels/linear/linear.py",
        "    x = padding.padded(x, padded)\n",
        "",
        (_TABLE + "the_library_is_asked_for_no_number_of_rows_that_was_not_compared",),
    ),
    Fault(
        "exact: the library takes rows at whose padded number another kernel was compared",
        "kernels/linear/linear.py",
        "x.shape[1], padded, silu=silu)",
        "x.shape[1], rows, silu=silu)",
        (_TALL + "exact_mode_asks_the_library_for_no_rows_at_which_another_was_compared",),
    ),
    Fault(
        "exact: what was dropped is launched again",
        "kernels/linear/exact.py",
        "card, own=where in self._own)\n",
        "card, own=False)\n",
        (_TABLE + "a_dropped_library_leaves_its_rows_to_tiles",),
    ),
    Fault(
        "exact: the cost is that of the cheapest number of rows",
        "kernels/linear/exact.py",
        "            worst = max(worst, ",
        "            worst = max(-1.0, ",
        (_TABLE + "the_cost_is_the_worst_over_rows_and_told_by_the_cards_own_table",),
    ),
    Fault(
        "exact: on is taken for a model that has no exact kernels",
        "engine/runner/exact_mode.py",
        "        if not one.weight.is_fp8 and one.weight.data.dtype != dtype:\n",
        "        if False:\n",
        (_MODE + "weights_of_another_kind_are_refused_by_name",),
    ),
    Fault(
        "exact: on is taken for a model whose attention has a window",
        "engine/runner/exact_mode.py",
        "    if shape.sliding_window is not None:\n",
        "    if False:\n",
        (_MODE + "on_is_refused_by_a_weights_name_and_auto_says_why_it_is_off",),
    ),
    Fault(
        "exact: a card on which no launch keeps the order is served as exact",
        "engine/runner/exact_mode.py",
        "        ops.products.give_up()\n",
        "",
        (_MODE + "what_differs_on_the_card_ends_exact_mode_or_costs_the_library",),
    ),
    Fault(
        "exact: a layer of experts is served that nobody compared",
        "engine/runner/exact_mode.py",
        "        if not _mixes(",
        "        if False and not _mixes(",
        (_MODE + "fp8_weights_and_experts_are_compared_and_refused_where_they_differ",),
    ),
    Fault(
        "exact: one row of an FP8 weight is left to the vector kernel",
        "kernels/linear/fp8_linear.py",
        "    if exact:\n",
        "    if exact and len(x) > 1:\n",
        (_FP8 + "neither_the_vector_kernel_nor_the_library_is_launched",),
    ),
    Fault(
        "exact: rows choose the split of an FP8 weight",
        "kernels/linear/fp8_tuning.py",
        "    return _fitting(replace(tile, split=split), silu, shared)\n",
        "    return _fitting(tile, silu, shared)\n",
        (_FP8 + "no_number_of_rows_changes_the_order_of_a_weights_sums",),
    ),
    Fault(
        "exact: shares of an FP8 weight in turn are summed as one",
        "kernels/linear/fp8_tiles.py",
        "            if (step + 1) % SHARE == 0:\n",
        "            if step < 0:\n",
        _PRODUCTS,
    ),
    Fault(
        "exact: tiles add a residual to what is not rounded yet",
        "kernels/linear/skinny.py",
        "        if APART:\n",
        "        if False:\n",
        _PRODUCTS,
    ),
    Fault(
        "exact: shares side by side are added as they come to hand",
        "kernels/linear/side.py",
        "        total = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7\n",
        "        total = s0 + s4 + s2 + s6 + s1 + s5 + s3 + s7\n",
        _PRODUCTS,
    ),
    Fault(
        "exact: shares that are stacked are added as they come to hand",
        "kernels/linear/stacked.py",
        "        y = _sum_in_order(parts.permute(1, 0, 2), BLOCK_M, BLOCK_N, SPLIT)\n",
        "        y = tl.sum(parts.permute(1, 0, 2), 2)\n",
        _PRODUCTS,
    ),
    Fault(
        "exact: shares one after another are summed as one",
        "kernels/linear/tall.py",
        "        SEVERAL=split > 1,\n",
        "        SEVERAL=False,\n",
        _PRODUCTS,
    ),
    Fault(
        "exact: pieces of a row are added one after another inside a product",
        "kernels/linear/norms.py",
        "        total = added_pieces(sums, FIRST, HALF, ALL)\n        if FIRST + HALF < ALL:\n",
        "        total = sums[FIRST]\n        HALF: tl.constexpr = 1\n"
        "        if FIRST + 1 < ALL:\n",
        _PRODUCTS,
    ),
    Fault(
        "exact: a residual joins what the library was not asked about padded",
        "kernels/linear/check.py",
        "    return [*counts, *less]\n",
        "    return counts\n",
        (_TABLE + "where_residuals_join_the_library_padded_products_are_compared_too",),
    ),
    Fault(
        "exact: a score's bits depend on the maximum that it is taken from",
        "kernels/attention/decode_merge.py",
        "1536.0 if NARROW else 0.0)",
        "0.0)",
        _ATTENTION,
    ),
    Fault(
        "exact: maxima are no whole numbers",
        "kernels/attention/decode_merge.py",
        "        top = tl.ceil(top)\n",
        "        top = top + 0.0\n",
        _ATTENTION,
    ),
    Fault(
        "exact: prompts begin no sum anew where a unit ends",
        "kernels/attention/exact_prefill.py",
        "            if edge & (t > 0):\n",
        "            if edge & (t < 0):\n",
        _ATTENTION,
    ),
    Fault(
        "exact: tiles cut units of contexts whose units are longer",
        "kernels/attention/decode_launch.py",
        "        most = min(most, tile * MAX_SPLITS // 2)\n",
        "        most = min(most, tile * MAX_SPLITS)\n",
        _ATTENTION,
    ),
    Fault(
        "exact: long splits of the fast mode pass for exact mode's",
        "kernels/attention/decode_launch.py",
        "min(LONG, MAX_SPLITS - 1)  #",
        "LONG  #",
        _ATTENTION,
    ),
    Fault(
        "exact: a token past the end of a context counts",
        "kernels/attention/decode.py",
        "(t + tl.arange(0, TILE) < end)",
        "(t + tl.arange(0, TILE) <= end)",
        _ATTENTION,
    ),
    Fault(
        "exact: the last tile of a context lies lower, as in the fast mode",
        "kernels/attention/decode_launch.py",
        "        fixed=exact,\n",
        "        fixed=False,\n",
        _ATTENTION,
    ),
    Fault(
        "exact: prompts take a tile that their context cuts by descriptors",
        "kernels/attention/exact_prefill.py",
        "tl.minimum(tl.cdiv(end, BN), context // BN) * BN\n",
        "tl.cdiv(end, BN) * BN\n",
        _ATTENTION,
    ),
    Fault(
        "exact: prompts see all of a tile that comes by descriptors",
        "kernels/attention/exact_prefill.py",
        "        masked = t >= whole\n",
        "        masked = (t >= whole) & (not TMA)\n",
        _ATTENTION,
    ),
)

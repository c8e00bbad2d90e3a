"""Faults of a cache of e4m3: how numbers are rounded, how many blocks there are, who says so."""

from faults.fault import Fault

_ENGINE = "tests/engine/test_fp8_cache_engine.py::test_"
_TWINS = "tests/kernels/attention/test_fp8_cache.py::test_"
INTERPRETED = (
    "tests/kernels/test_interpreted.py::test_triton_kernels_under_the_interpreter[others]",
)

FAULTS = (
    Fault(
        "fp8 cache: what is infinite becomes the largest number",
        "kernels/reference/kv_format.py",
        ".masked_fill(wide.isinf(), torch.nan)",
        "",
        (_TWINS + "a_number_becomes_the_nearest_one_and_what_is_none_stays_none",),
    ),
    Fault(
        "fp8 cache: a kernel lets an infinite number pass as the largest",
        "kernels/attention/kv_format.py",
        '        x = tl.where(number, near, float("nan"))\n',
        "        x = near\n",
        INTERPRETED,
    ),
    Fault(
        "fp8 cache: a prompt's keys are not those that a row of one token writes",
        "kernels/attention/qk_norm_rope.py",
        "            k = held(y.to(q_ptr.dtype.element_ty), k_ptr.dtype.element_ty)\n",
        "            k = held(y, k_ptr.dtype.element_ty)\n",
        INTERPRETED,
    ),
    Fault(
        "fp8 cache: queries become fp16 as they are, large ones infinite",
        "kernels/attention/pairs.py",
        "    return (wide * up[:, None]).to(tl.float16), down * scale\n",
        "    return (wide + 0.0 * up[:, None]).to(tl.float16), 0.0 * down + scale\n",
        INTERPRETED,
    ),
    Fault(
        "fp8 cache: values of odd columns are merged by the maximum of the next tile",
        "kernels/attention/pairs.py",
        "        _, _, odd = merge(m, total, odd, m_new, total_new, odd_new)\n"
        "    m, total, acc = merge(m, total, acc, m_new, total_new, acc_new)\n",
        "        _, _, odd = merge(m_new, total, odd, m_new, total_new, odd_new)\n"
        "    m, total, acc = merge(m, total, acc, m_new, total_new, acc_new)\n",
        INTERPRETED,
    ),
    Fault(
        "fp8 cache: kernels of a cache of 16 bits are warmed in its place",
        "engine/runner/warmup.py",
        "    held = model.dtype, config.block_size, config.fp8_cache\n",
        "    held = model.dtype, config.block_size, False\n",
        (_ENGINE + "what_is_warmed_and_compiled_ahead_is_of_such_a_cache",),
    ),
    Fault(
        "fp8 cache: it is sized beside graphs that are thought to be half as large",
        "engine/startup/build_rank.py",
        "        graphs = sizing.graph_bytes(config, shape, model.dtype)\n",
        "        graphs = sizing.graph_bytes(config, shape, dtype)\n",
        (_ENGINE + "the_cache_is_sized_beside_graphs_of_the_activations_dtype",),
    ),
    Fault(
        "fp8 cache: it has the blocks of a cache of 16 bits",
        "engine/startup/sizing.py",
        "        blocks = cache_blocks(config, model, cache_dtype, budget, what)\n",
        "        blocks = cache_blocks(config, model, dtype, budget, what)\n",
        (_ENGINE + "a_card_has_room_for_twice_the_blocks",),
    ),
    Fault(
        "fp8 cache: the fingerprint is that of another cache",
        "engine/startup/build_engine.py",
        "        fingerprint=model.served_fingerprint(cache_dtype),\n",
        "        fingerprint=model.served_fingerprint(torch.float32),\n",
        (_ENGINE + "a_stream_does_not_go_on_at_a_replica_with_another_cache",),
    ),
    Fault(
        "fp8 cache: compiled attention of float32 reads bytes",
        "kernels/cpu/attention.py",
        "            and k_cache.dtype == torch.float32\n",
        "",
        (_ENGINE + "compiled_attention_leaves_such_a_cache_to_the_twin",),
    ),
)

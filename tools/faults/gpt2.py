"""Faults of GPT-2: its positions, biases and stored matrices, its names, and its tokenizer."""

from faults.fault import Fault

_MODEL = "tests/engine/model/test_gpt2.py::test_"
_EQUAL = "tests/engine/model/test_hf_equivalence.py::test_fp32_gives_the_same_tokens_logits"
_AS_THEIRS = (_EQUAL + "_and_log_probabilities[gpt2, heads of 64, fp32]",)
_SERVED = "tests/service/models/test_gpt2_served.py::test_"

FAULTS = (
    Fault(
        "gpt2: a chunk's positions begin at 0",
        "engine/model/gpt2.py",
        "self.positions[batch.positions])",
        "self.positions[: len(batch.positions)])",
        _AS_THEIRS,
    ),
    Fault(
        "gpt2: the last layer's bias stays owed",
        "engine/model/gpt2.py",
        "        return residual if owed is None else residual.add_(owed)\n",
        "        return residual\n",
        _AS_THEIRS,
    ),
    Fault(
        "gpt2: a rank takes its heads of q for those of k and v",
        "engine/model/layers/linear.py",
        "slice(first + rows.start, first + rows.stop))",
        "slice(rows.start, rows.stop))",
        (
            "tests/engine/model/test_shards.py::test_ranks_together_compute_what_one_computes[2-gpt2]",
            "tests/engine/model/test_shards.py::test_ranks_together_compute_what_one_computes[2-phi3]",
        ),
    ),
    Fault(
        "gpt2: masks of old files are taken for weights",
        "engine/model/gpt2.py",
        "        return _MASKS.fullmatch(name) is not None\n",
        "        return False\n",
        (_MODEL + "the_names_and_masks_of_old_files_are_read",),
    ),
    Fault(
        "gpt2: a weight may be stored as a mask is",
        "engine/weights/formats.py",
        "    check_dtype(stored)\n",
        "",
        (_MODEL + "unsound_checkpoints_are_refused_before_memory_is_taken",),
    ),
    Fault(
        "gpt2: unscaled attention is taken for scaled",
        "engine/model/hf_gpt2.py",
        '    config.only("scale_attn_weights", True)\n',
        "",
        (_MODEL + "variants_are_refused_by_name",),
    ),
    Fault(
        "gpt2: the cache is asked for one of its two names alone",
        "service/models/resolve.py",
        "    return other if tuple(there) == (False, True) else name\n",
        "    return name\n",
        (_SERVED + "both_names_are_found_in_the_cache_under_either",),
    ),
    Fault(
        "gpt2: another family's vocabulary is split as GPT-2's",
        "service/text/vocab_and_merges.py",
        '    if kind not in _CLASSES and not (kind is None and model_type == "gpt2"):\n',
        "    if False:\n",
        (_SERVED + "other_families_files_are_refused_with_what_to_type",),
    ),
)

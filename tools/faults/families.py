"""Faults of families beside Qwen3 and of formats beside bf16."""

from faults.fault import Fault

MODEL = "tests/engine/model/"
FP8 = MODEL + "test_fp8.py::test_"
EVERY = MODEL + "test_every_architecture.py::test_"
BAD_TENSORS = (FP8 + "bad_tensors_are_told_by_name_before_memory_is_taken",)

FAULTS = (
    Fault(
        "families: biases of q, k and v are left out",
        "engine/model/layers/linear.py",
        "return y if self.bias is None else y.add_(self.bias)",
        "return y",
        (
            MODEL + "test_hf_equivalence.py"
            "::test_fp32_gives_the_same_tokens_logits_and_log_probabilities",
        ),
    ),
    Fault(
        "families: frequencies of Llama 3.1 are not scaled",
        "engine/model/layers/rotary.py",
        "return _by_wavelength(1.0 / wavelengths, scaling)",
        "return 1.0 / wavelengths",
        (MODEL + "test_rotary.py::test_scaled_frequencies_are_those_of_transformers",),
    ),
    Fault(
        "families: of equal scores some expert wins",
        "kernels/reference/experts.py",
        "ranked, order = scores.sort(dim=-1, descending=True, stable=True)",
        "ranked, order = scores.flip(-1).sort(dim=-1, descending=True, stable=True)\n"
        "    order = scores.shape[1] - 1 - order",
        (MODEL + "test_experts.py::test_of_equal_scores_the_lowest_expert_wins",),
    ),
    Fault(
        "families: weights of experts are never renormalised",
        "kernels/reference/experts.py",
        "    if renormalise:\n",
        "    if False:\n",
        (MODEL + "test_experts.py::test_weights_are_shares_of_all_or_of_the_chosen",),
    ),
    Fault(
        "formats: scales are not looked at",
        "engine/weights/loader.py",
        "        if name.endswith(SCALE):\n",
        "        if False:\n",
        BAD_TENSORS,
    ),
    Fault(
        "formats: a wide weight is cast where FP8 was promised",
        "engine/weights/formats.py",
        "    if asked == (stored.dtype == _FP8):\n",
        "    if True:\n",
        BAD_TENSORS,
    ),
    Fault(
        "formats: a skip list may name what is not there",
        "engine/model/registry.py",
        "    if config.fp8 is not None:\n        check_skipped(",
        "    if False:\n        check_skipped(",
        (FP8 + "a_skip_list_that_cannot_be_honoured_is_refused",),
    ),
    Fault(
        "formats: activations have one scale a token",
        "kernels/reference/fp8.py",
        "scale = _scale(groups.abs().amax(dim=2))",
        "scale = _scale(groups.abs().amax(dim=(1, 2))[:, None].expand(-1, groups.shape[1]))",
        ("tests/kernels/test_fp8_twins.py::test_a_product_is_the_one_defined",),
    ),
    Fault(
        "families: an architecture's window is passed over",
        "engine/model/hf_families.py",
        '"phi3",\n        WindowKeys.ALONE,',
        '"phi3",\n        WindowKeys.NONE,',
        (EVERY + "a_window_is_one_where_transformers_has_one",),
    ),
    Fault(
        "families: silence means what it means of another architecture",
        "engine/model/hf_families.py",
        "rms_norm_eps=1e-5",
        "rms_norm_eps=1e-6",
        (EVERY + "silence_means_what_it_means_to_transformers",),
    ),
    Fault(
        "families: a kernel that may be a dependent one is all that stands before the layers",
        "engine/model/layers/embedding.py",
        "return ResidualStream(self.weight[token_ids])",
        "return ResidualStream(self._ops.rms_norm(self.weight[: len(token_ids)], then, eps))",
        (EVERY + "an_ordinary_launch_stands_before_its_layers",),
    ),
)

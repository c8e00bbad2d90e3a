"""Faults of one row's way from attention to attention by one kernel."""

from faults.fault import Fault

_MODEL = "tests/engine/model/test_one_row.py::test_"
_KERNEL = "tests/kernels/linear/test_row.py::test_"

FAULTS = (
    Fault(
        "one row: so go two",
        "engine/model/decoder.py",
        "if len(batch.token_ids) == 1 else None",
        "if len(batch.token_ids) <= 2 else None",
        (_MODEL + "two_rows_go_product_by_product",),
    ),
    Fault(
        "one row: biases are left out",
        "engine/model/decoder.py",
        "if following and following.attention.qkv.bias is not None:",
        "if False:",
        (_MODEL + "layers_of_other_kinds_go_product_by_product[biases]",),
    ),
    Fault(
        "one row: a rank takes its part for the whole",
        "engine/model/decoder.py",
        "        if not self._alone or not has_row(ops):\n",
        "        if not has_row(ops):\n",
        (_MODEL + "so_do_rows_of_which_each_rank_has_a_part",),
    ),
    Fault(
        "one row: chosen layers are followed by the model's next",
        "engine/model/decoder.py",
        "zip_longest(layers, layers[1:])",
        "zip(layers, [*layers[1:], self.layers[0]])",
        (_MODEL + "chosen_layers_follow_one_another",),
    ),
    Fault(
        "one row: exact mode takes it",
        "kernels/linear/row_ops.py",
        "if self.exact or device in _refusing",
        "if device in _refusing",
        (_KERNEL + "exact_mode_declines_it",),
    ),
    Fault(
        "one row: what a driver does not launch is asked for in each step",
        "kernels/linear/row_ops.py",
        "            _refusing.add(attended.device)\n",
        "",
        (_KERNEL + "what_a_driver_does_not_launch_is_asked_for_once",),
    ),
    Fault(
        "one row: a lost device is taken for a launch that is refused",
        "kernels/linear/row_ops.py",
        "if not _REFUSAL.match(str(error)):",
        'if not str(error).startswith("Triton Error"):',
        (_KERNEL + "what_a_driver_does_not_launch_is_asked_for_once",),
    ),
    Fault(
        "one row: a norm's padding is written over what lies behind x",
        "kernels/linear/row_launch.py",
        " or self.padded > self.pieces * PIECE:",
        ":",
        (_KERNEL + "other_sizes_do_not",),
    ),
    Fault(
        "one row: the ring leaves attention no shared memory",
        "kernels/linear/row_launch.py",
        "support.shared_bytes(device) - _BESIDE - 2",
        "support.shared_bytes(device) - 2",
        (_KERNEL + "the_ring_leaves_attention_its_shared_memory",),
    ),
)

"""Descriptors of what kernels in Gluon copy."""

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")


def test_a_layout_is_found_once() -> None:
    """It takes longer than the descriptor, and steps that nothing captures wait for launches."""
    from quire.kernels.gluon_boxes import box

    wide, narrow = (torch.zeros(64, width, dtype=torch.bfloat16) for width in (256, 128))
    first = box(wide, [64, 256], [64, 64])
    assert box(narrow, [64, 128], [64, 64]).layout is first.layout
    assert box(wide, [64, 256], [32, 64]).block_shape == [32, 64]
    assert box(wide.half(), [64, 256], [64, 64]).layout.element_bitwidth == 16

"""The shapes that attention kernels are swept over."""

import torch

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def sweep_shapes() -> list[tuple[int, int, torch.dtype, int, int]]:
    """(dim, block_size, dtype, group, kv_heads): each pair of the first two once in bf16, each dim
    in the other dtypes; groups in turn, for every combination costs a compilation."""
    dims, blocks = (16, 32, 64, 96, 128, 256), (16, 32, 64, 128, 256)
    groups = ((1, 2), (2, 8), (5, 1), (16, 2))
    shapes = [
        (dim, block, BF16, *groups[(i + j) % 4])
        for i, dim in enumerate(dims)
        for j, block in enumerate(blocks)
    ]
    for i, dim in enumerate(dims):
        shapes.append((dim, blocks[i % 5], FP16, *groups[(i + 1) % 4]))
        shapes.append((dim, blocks[(i + 2) % 5], FP32, *groups[(i + 2) % 4]))
    return shapes

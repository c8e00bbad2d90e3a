"""FP8 as the format defines it, written out, and checkpoints made with it.

Nothing here is shared with the code under test: rounding, scales and products are spelt out.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

BLOCK, LARGEST = 128, 448.0
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    return (x / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def scale_of(block: Tensor) -> Tensor:
    largest = block.abs().max()
    return largest / LARGEST if largest else torch.ones(())


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 and the scales of blocks, one block at a time."""
    rows, columns = weight.shape
    data = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-rows // BLOCK), -(-columns // BLOCK))
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            where = (
                slice(row * BLOCK, (row + 1) * BLOCK),
                slice(column * BLOCK, (column + 1) * BLOCK),
            )
            scales[row, column] = scale_of(weight[where].float())
            data[where] = rounded(weight[where].float(), scales[row, column])
    return data, scales


def widened(data: Tensor, scales: Tensor) -> Tensor:
    """The numbers that a stored weight stands for."""
    out = data.float()
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            part = out[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
            part *= scales[row, column].float()
    return out


def as_taken(x: Tensor) -> Tensor:
    """What activations are once they are rounded to e4m3, a token and 128 columns at a time."""
    out = x.float().clone()
    for group in out.reshape(-1, x.shape[-1]).split(BLOCK, dim=-1):
        for row in group:
            scale = scale_of(row)
            row.copy_(rounded(row, scale).float() * scale)
    return out


def quantize_checkpoint(directory: Path, *, skipped: tuple[str, ...] = ()) -> None:
    """Make a checkpoint in one file FP8, its configuration included. skipped: modules."""
    file = directory / "model.safetensors"
    made: dict[str, Tensor] = {}
    for name, tensor in load_file(file).items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in PROJECTIONS or module in skipped:
            made[name] = tensor
            continue
        made[name], made[f"{name}_scale_inv"] = quantized(tensor)
    save_file(made, file, metadata={"format": "pt"})
    change_config(
        directory,
        quantization_config={
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": ["lm_head", *skipped],
        },
    )


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

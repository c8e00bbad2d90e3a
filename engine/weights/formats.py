"""Checks that stored tensors have the format that the configuration says, before memory is
allocated.
"""

import torch

from quire.engine.errors import ModelError
from quire.engine.model.layers.placement import Placement
from quire.engine.model.layers.quantized import QuantizingPlacement
from quire.engine.weights.checkpoint import Checkpoint
from quire.engine.weights.safetensors_file import StoredTensor, check_dtype

_FP8 = torch.float8_e4m3fn
_MOST = torch.finfo(_FP8).max


def check_format(placement: Placement, stored: StoredTensor) -> None:
    """An FP8 weight is stored as one, and only such a weight is. Raises ModelError."""
    check_dtype(stored)
    asked = placement.target.dtype == _FP8 and not isinstance(placement, QuantizingPlacement)
    if asked == (stored.dtype == _FP8):
        return
    kind = str(stored.dtype).removeprefix("torch.")
    wanted = "an FP8 weight" if asked else "none in FP8"
    raise ModelError(
        f"{stored.path}: {stored.name} is {kind}, where the configuration's quantization and its "
        f"modules_to_not_convert ask for {wanted}"
    )


def check_scales(checkpoint: Checkpoint, stored: StoredTensor) -> None:
    """Scales are numbers above 0, and what they make of FP8 is finite. Raises ModelError."""
    buffer = bytearray(stored.nbytes)
    checkpoint.read(stored, 0, memoryview(buffer))
    scales = torch.frombuffer(buffer, dtype=stored.dtype).view(stored.shape).float()
    sound = (scales * _MOST).isfinite() & (scales > 0)
    if bool(sound.all()):
        return
    row, column = (~sound).nonzero()[0].tolist()
    raise ModelError(
        f"{stored.path}: {stored.name}[{row}, {column}] = {float(scales[row, column]):g}: a scale "
        f"must be a number above 0, and {_MOST:g} times it finite"
    )

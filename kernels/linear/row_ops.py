"""One row's products between two attentions as the part of `TritonOps` that they are.

Invariant: as of kernels/triton_ops.py, whose class has what this one takes as given.
"""

import logging
import re

import torch
from torch import Tensor

from quire.kernels.linear import row_launch
from quire.kernels.triton_part import TritonPart
from quire.kernels.weight import RowWeights

log = logging.getLogger(__name__)
_refusing: set[torch.device] = set()  # whose drivers do not launch the kernel
# What they say of a launch that they do not make. Others are of a device that may be lost.
_REFUSAL = re.compile(
    r"Triton Error \[CUDA\]: (operation not supported|invalid argument"
    r"|too many (blocks in cooperative launch|resources requested for launch))"
)


class RowTritonOps(TritonPart):
    """Implements what `ops.RowOps` asks for beside the rest."""

    def row_rooms(
        self, layers: int, sizes: row_launch.Sizes, dtype: torch.dtype, device: torch.device
    ) -> list[row_launch.Room] | None:
        if self.exact or device in _refusing or not sizes.fit(dtype, device):
            return None
        return row_launch.new_rooms(layers, sizes, device)

    def between_attentions(
        self,
        attended: Tensor,
        residual: Tensor,
        weights: RowWeights,
        eps: float,
        room: row_launch.Room,
    ) -> tuple[Tensor, Tensor | None]:
        from quire.kernels.linear import hopper_row  # Gluon: not in every Triton

        try:
            return hopper_row.row(attended, residual, weights, eps, room, pdl=self.pdl)
        except RuntimeError as error:
            if not _REFUSAL.match(str(error)):
                raise
            _refusing.add(attended.device)
            log.warning("one row goes product by product: its kernel is not launched: %s", error)
            raise row_launch.RowUnavailable(str(error)) from error

"""Edits of single logits: bias, allowed and banned ids, and masks of constraints.

Invariant: a slot's edits are recorded at its admission; a constraint's mask already includes
everything else that restricts its row. Only rows with edits are touched.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from quire.engine.runner.masks import NO_MASK
from quire.engine.runner.staging import Staging
from quire.engine.scheduling.plan import Admission, Mask, Masks, SamplingNumbers, StepPlan

Bias = tuple[Tensor, Tensor, Tensor]
"""Rows of the logits [K] int64, ids [K] int64, what is added to each [K] fp32."""


class SlotEdits:
    """The slots' edits, on the host."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._bias: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = {}
        self._masks: dict[int, Mask] = {}

    def admit(self, admitted: Sequence[Admission]) -> None:
        """Take down what the slots' new requests ask for."""
        for one in admitted:
            self._bias.pop(one.slot, None)
            self._masks.pop(one.slot, None)
            sampling = one.sampling
            if sampling.logit_bias:
                ids, values = zip(*sampling.logit_bias, strict=True)
                bias = (np.array(ids, np.int64), np.array(values, np.float32))
                self._bias[one.slot] = bias
            if sampling.allowed_ids or sampling.banned_ids:
                self._masks[one.slot] = self._mask(sampling)

    def _mask(self, sampling: SamplingNumbers) -> Mask:
        allowed = np.zeros(-(-self._vocab_size // 32) * 32, np.uint8)
        allowed[list(sampling.allowed_ids) or slice(None)] = 1
        allowed[list(sampling.banned_ids)] = 0
        return np.packbits(allowed, bitorder="little").tobytes()

    def masks(self, plan: StepPlan, masks: Masks) -> list[Mask]:
        """The mask of each row of the logits, or NO_MASK. masks: those of constraints."""
        found = self._masks | dict(masks)
        return [found.get(slot, NO_MASK) for slot in _sampling(plan)]

    def bias(self, staging: Staging, plan: StepPlan) -> Bias:
        """The bias of the plan's rows that sample, uploaded. Those rows are the first rows of the
        logits."""
        slots = enumerate(_sampling(plan))
        found = [(row, *self._bias[slot]) for row, slot in slots if slot in self._bias]
        staging.begin()
        staging.put("rows", np.concatenate([np.full(len(ids), row) for row, ids, _ in found]))
        staging.put("ids", np.concatenate([ids for _, ids, _ in found]))
        staging.put("values", np.concatenate([values for _, _, values in found]))
        staging.upload()
        return staging.get("rows"), staging.get("ids"), staging.get("values")


def _sampling(plan: StepPlan) -> list[int]:
    """The slots of the rows of the logits."""
    return [row.slot for row in plan.rows if row.samples]

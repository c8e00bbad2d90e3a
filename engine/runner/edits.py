"""Single ids preferred or left out: bias, allowed and banned ids, and masks of constraints.

Invariant: what a slot asks for is taken down at its admission; a constraint's mask stands for all
that its row may draw. Only rows that ask for something are touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from quire.engine.runner.staging import Staging
from quire.engine.scheduling.plan import Admission, Masks, SamplingNumbers, StepPlan

_Words = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Edits:
    """What is done to the logits of a step. rows count those of the logits.

    bias: rows [K] int64, ids [K] int64, values [K] fp32. mask: rows [M] int64, words
    [M, ceil(V / 32)] int32, a bit for each id. None: no row asks for it.
    """

    bias: tuple[Tensor, Tensor, Tensor] | None
    mask: tuple[Tensor, Tensor] | None


class SlotEdits:
    """What the slots ask for, on the host."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._bias: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = {}
        self._masks: dict[int, _Words] = {}

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

    def _mask(self, sampling: SamplingNumbers) -> _Words:
        allowed = np.zeros(-(-self._vocab_size // 32) * 32, np.uint8)
        allowed[list(sampling.allowed_ids) or slice(None)] = 1
        allowed[list(sampling.banned_ids)] = 0
        return np.packbits(allowed, bitorder="little").view("<i4")

    def stage(self, staging: Staging, plan: StepPlan, masks: Masks) -> None:
        """Put what the plan's rows that sample ask for into the upload; the first rows of the
        logits are theirs."""
        sampling = list(enumerate(row.slot for row in plan.rows if row.samples))
        biased = [(row, *self._bias[slot]) for row, slot in sampling if slot in self._bias]
        if biased:
            rows = [np.full(len(ids), row, np.int64) for row, ids, _ in biased]
            staging.put("bias_rows", np.concatenate(rows))
            staging.put("bias_ids", np.concatenate([ids for _, ids, _ in biased]))
            staging.put("bias_values", np.concatenate([values for _, _, values in biased]))
        words = self._masks | {slot: np.frombuffer(mask, "<i4") for slot, mask in masks}
        masked = [(row, words[slot]) for row, slot in sampling if slot in words]
        if masked:
            staging.put("mask_rows", np.array([row for row, _ in masked], np.int64))
            staging.put("mask_words", np.stack([mask for _, mask in masked]))

    @staticmethod
    def uploaded(staging: Staging) -> Edits:
        """What `stage` has put, on the device."""
        bias = mask = None
        if staging.find("bias_rows") is not None:
            bias = tuple(staging.get(f"bias_{name}") for name in ("rows", "ids", "values"))
        if staging.find("mask_rows") is not None:
            mask = (staging.get("mask_rows"), staging.get("mask_words"))
        return Edits(bias, mask)  # type: ignore[arg-type]

"""How the slots' requests sample, on the host: what a step's rows need after their logits.

Invariant: what a slot asks for is taken down at its admission, and holds until the next one there.
"""

from collections.abc import Sequence

from quire.engine.runner.sampler import Needs
from quire.engine.scheduling.plan import Admission, SamplingNumbers, StepPlan


class SlotSampling:
    """Of every slot, the numbers of its last admission."""

    def __init__(self) -> None:
        self.decoding: list[int] = []  # slots of the last decode step
        self._decode_needs: Needs | None = None  # what those need; None: not known any more
        self._numbers: dict[int, SamplingNumbers] = {}

    def admit(self, admitted: Sequence[Admission]) -> None:
        """Take down what the slots' new requests ask for."""
        self._decode_needs = None
        self._numbers.update((one.slot, one.sampling) for one in admitted)

    def reset(self) -> None:
        """After a failed step."""
        self._decode_needs = None

    def needs_of_decode(self, plan: StepPlan) -> Needs:
        """Of a step of one-token rows; looked up again only when its slots or requests change."""
        slots = [row.slot for row in plan.rows]
        if self._decode_needs is None or slots != self.decoding:
            self.decoding, self._decode_needs = slots, self.needs_of(plan)
        return self._decode_needs

    def needs_of(self, plan: StepPlan) -> Needs:
        """Of any step."""
        needs = Needs(masks=bool(plan.masked))
        for row in plan.rows:
            if row.samples:
                needs = needs.including(self._numbers[row.slot])
        return needs

    def logprobs_of(self, plan: StepPlan) -> list[int | None]:
        """How many of the best each sampling row wants told; None: no log-probabilities at all."""
        return [self._numbers[row.slot].logprobs for row in plan.rows if row.samples]

"""The slots' sampling parameters, on the host: which operations a step's rows need.

Invariant: a slot's parameters are recorded at its admission, and hold until the next one.
"""

from collections.abc import Sequence

from quire.engine.runner.sampler import Needs
from quire.engine.scheduling.plan import Admission, SamplingNumbers, StepPlan


class SlotSampling:
    """For every slot, the numbers of its last admission, and what it needs."""

    def __init__(self) -> None:
        self.decoding: list[int] = []  # slots of the last decode step
        self._decode_needs: Needs | None = None  # what those need; None: not known any more
        self._numbers: dict[int, SamplingNumbers] = {}
        self._needs: dict[int, Needs] = {}

    def admit(self, admitted: Sequence[Admission]) -> None:
        """Take down what the slots' new requests ask for."""
        self._decode_needs = None
        for one in admitted:
            self._numbers[one.slot] = one.sampling
            self._needs[one.slot] = Needs.of(one.sampling)

    def reset(self) -> None:
        """After a failed step."""
        self._decode_needs = None

    def needs_of_decode(self, plan: StepPlan) -> Needs:
        """The needs of a step of one-token rows; computed again only if its slots or requests
        change."""
        slots = [row.slot for row in plan.rows]
        if self._decode_needs is None or slots != self.decoding:
            self.decoding, self._decode_needs = slots, self.needs_of(plan)
        return self._decode_needs

    def needs_of(self, plan: StepPlan) -> Needs:
        """The needs of any step."""
        found = {self._needs[row.slot] for row in plan.rows if row.samples}
        needs = found.pop() if len(found) == 1 else Needs(*map(any, zip(*found, strict=True)))
        return needs._replace(masks=True) if plan.masked else needs

    def logprobs_of(self, plan: StepPlan) -> list[int | None]:
        """For each sampling row, how many of the best log-probabilities it wants; None: none at
        all."""
        return [self._numbers[row.slot].logprobs for row in plan.rows if row.samples]

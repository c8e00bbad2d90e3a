"""Steps that are not captured yet: which to capture at once, and which in spare time.

A step with prompts is done sooner by an eager run than by a capture and a replay, so the first of
its kind is not captured. One-token rows are, at once: they come again with the very next step.
"""

from collections import deque
from collections.abc import Iterable

from quire.engine.runner.graphs import GraphKey, Key, SamplerKey, StepGraphs

_PATIENCE = 256  # steps that do without a graph for which there is no spare time


class Uncaptured:
    """Of one runner."""

    def __init__(self) -> None:
        self._met: set[Key] = set()
        self._later: deque[Key] = deque()
        self._expected: dict[Key, int] = {}  # of those: how often they were done without

    def at_once(self, key: Key, *, compiled: bool) -> bool:
        """Whether a step is to be captured now that it is wanted. compiled: all its kernels are."""
        return key in self._met or (compiled and not of_prompts(key))

    def met(self, key: Key) -> None:
        """It ran eagerly, and is captured at once the next time; with prompts also before all
        others when there is time: on null rows, of which one-token rows know nothing then."""
        self._met.add(key)
        if of_prompts(key):
            self._later.appendleft(key)

    def expect(self, keys: Iterable[Key]) -> None:
        """These are likely to be wanted."""
        found = list(keys)
        self._later.extend(found)
        self._expected.update(dict.fromkeys(found, 0))

    def choose(self, best: GraphKey, other: GraphKey, captured: StepGraphs) -> GraphKey:
        """How to run a step: by its best graph, or, while that is still to be captured in spare
        time, by another that serves too, if that is captured. Not for ever: a server that is never
        idle has no spare time."""
        if best in captured:
            return best
        uses = self._expected.get(best, _PATIENCE)
        if other not in captured or uses >= _PATIENCE:
            return best
        self._expected[best] = uses + 1
        return other

    def next(self, captured: StepGraphs) -> Key | None:
        """What to capture in spare time; None: nothing."""
        while self._later:
            key = self._later.popleft()
            self._expected.pop(key, None)
            if key not in captured:
                return key
        return None


def of_prompts(key: Key) -> bool:
    """Whether it is of a step with rows of more than one token."""
    return key.prompts if isinstance(key, SamplerKey) else key.prefill_tokens > 0

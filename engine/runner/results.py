"""A step's results on their way from the device to the host.

Invariant: a PendingResult reads its host buffers only once the copies into them have ended.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quire.engine.runner.sampler import to_logprobs
from quire.engine.scheduling.plan import StepResult

Done = Callable[[], None]


class PendingResult:
    """A step's tokens on their way to the host."""

    def __init__(
        self,
        wanted: list[int | None],
        tokens: Tensor,
        logprobs: tuple[Tensor, ...] | None,
        done: Done,
    ) -> None:
        """wanted: of each row that samples, how many logprobs; not looked at without logprobs."""
        self._wanted = wanted
        self._tokens = tokens
        self._logprobs = logprobs
        self._done = done

    def wait(self) -> StepResult:
        """Wait for the device (the interpreter lock is free meanwhile) and return the tokens."""
        self._done()
        tokens = [[token] for token in self._tokens.tolist()]
        if self._logprobs is None:
            return StepResult(tokens)
        chosen, rank, top_ids, top_values = self._logprobs
        values = (chosen, rank, top_ids, top_values)
        return StepResult(tokens, to_logprobs(tokens, self._wanted, values))


def joined(value: Tensor, parts: list[slice]) -> Tensor:
    """Some rows of a value, one part behind the other."""
    return torch.cat([value[part] for part in parts])


def copy_parts(host: Tensor, value: Tensor, parts: list[slice]) -> None:
    """The same into a host buffer, without waiting for the device."""
    begin = 0
    for part in parts:
        length = part.stop - part.start
        host[begin : begin + length].copy_(value[part], non_blocking=True)
        begin += length

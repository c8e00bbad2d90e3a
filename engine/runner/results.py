"""A step's results on their way from the device to the host.

Invariant: a PendingResult reads its host buffers only once the copies into them have ended.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from quire.engine.runner.compute_prompt_logprobs import PromptLogprobTensors
from quire.engine.runner.pooling import PooledNumbers
from quire.engine.runner.sampler import Sampled, to_logprobs
from quire.engine.runner.staging import Steps
from quire.engine.scheduling.plan import StepResult

RESULT_RING = 4  # steps whose results may be unread at once, one more than are ever in flight

Done = Callable[[], None]


class PendingResult:
    """A step's tokens on their way to the host."""

    def __init__(
        self,
        wanted: list[int | None],
        tokens: Tensor,
        logprobs: tuple[Tensor, ...] | None,
        done: Done,
        pooled: PooledNumbers | None = None,
        prompt_logprobs: PromptLogprobTensors | None = None,
    ) -> None:
        """wanted: of each row that samples, how many logprobs; not looked at without logprobs."""
        self._wanted = wanted
        self._pooled = pooled
        self._prompt_logprobs = prompt_logprobs
        self._tokens = tokens
        self._logprobs = logprobs
        self._done = done
        self._fetched: list[int] | None = None

    def fetch(self) -> list[int]:
        """Wait for the device (the interpreter lock is free meanwhile): one token a row. What they
        came to may then be others'."""
        if self._fetched is None:
            self._done()
            self._fetched = self._tokens.tolist()
        return self._fetched

    def wait(self) -> StepResult:
        """The tokens, and all else."""
        tokens = [[token] for token in self.fetch()]
        pooled = () if self._pooled is None else self._pooled.packed()
        prompt_logprobs = () if self._prompt_logprobs is None else self._prompt_logprobs.packed()
        if self._logprobs is None:
            return StepResult(tokens, None, pooled, prompt_logprobs)
        chosen, rank, top_ids, top_values = self._logprobs
        values = (chosen, rank, top_ids, top_values)
        return StepResult(
            tokens, to_logprobs(tokens, self._wanted, values), pooled, prompt_logprobs
        )


class Results:
    """Host buffers that results come into, a ring of them, of at most `rows` tokens each."""

    def __init__(self, device: torch.device, rows: int, check: Done = lambda: None) -> None:
        """check: called once a step has ended; it may raise."""
        self.steps = Steps()
        self._check = check
        self._on_host = device.type == "cpu"
        pinned = device.type == "cuda"
        self._ring = [
            torch.empty(rows, dtype=torch.int64, pin_memory=pinned) for _ in range(RESULT_RING)
        ]
        self._events = [torch.cuda.Event() for _ in range(RESULT_RING)] if pinned else []
        self._turn = 0
        self._kept = torch.empty(rows, dtype=torch.int64, pin_memory=pinned)
        self._kept_event = torch.cuda.Event(external=True) if pinned else None  # part of a graph

    def keep(self, sampled: Sampled) -> Sampled:
        """The same, with the tokens copied to the host as part of a graph. So the results of a step
        must be fetched before its graph is launched again."""
        on_host = self._kept[: len(sampled.tokens)].copy_(sampled.tokens, non_blocking=True)
        if self._kept_event is not None:
            self._kept_event.record()
        return replace(sampled, on_host=on_host)

    def collect(self, sampled: Sampled, count: int, wanted: list[int | None]) -> PendingResult:
        """Start the copies of the first `count` rows to the host. wanted: see PendingResult."""
        kept = sampled.on_host
        tokens, logprobs = (sampled.tokens if kept is None else kept)[:count], None
        if sampled.logprobs is not None:
            logprobs = tuple(value[:count] for value in sampled.logprobs)
        if self._on_host:
            told = sampled.pooled, sampled.prompt_logprobs
            return PendingResult(wanted, tokens, logprobs, self._check, *told)
        self._turn = (self._turn + 1) % RESULT_RING
        if kept is None:
            tokens = self._ring[self._turn][:count].copy_(tokens, non_blocking=True)
        if logprobs is not None:
            logprobs = tuple(_to_host(value) for value in logprobs)
        pooled = None if sampled.pooled is None else sampled.pooled.on_host(_to_host)
        prompt_logprobs = (
            None if sampled.prompt_logprobs is None else sampled.prompt_logprobs.on_host(_to_host)
        )
        event, steps = self._kept_event, self.steps
        if kept is None or event is None or logprobs or pooled or prompt_logprobs:
            event = self._events[self._turn]
            event.record()
        steps.asked = asked = steps.asked + 1

        def done() -> None:
            event.synchronize()
            steps.come = max(steps.come, asked)
            self._check()

        return PendingResult(wanted, tokens, logprobs, done, pooled, prompt_logprobs)


def _to_host(value: Tensor) -> Tensor:
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return host.copy_(value, non_blocking=True)

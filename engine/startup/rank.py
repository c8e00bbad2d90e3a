"""One rank that is built: what plans are executed on.

Invariant: where several share a model, each is one of these in a process of its own.
"""

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from quire.engine.model.forward_batch import KVCache
from quire.engine.model.registry import Model
from quire.engine.runner.results import PendingResult
from quire.engine.runner.runner import Runner
from quire.engine.scheduling.plan import Masks, StepPlan
from quire.kernels.ops import Ops


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank's share of the model, its cache and its runner."""

    model: Model
    ops: Ops
    runner: Runner
    kv: KVCache
    max_model_len: int

    def execute(self, plan: StepPlan) -> PendingResult | None:
        """See Runner."""
        return self.runner.execute(plan)

    def sample(self, masks: Masks) -> PendingResult:
        """See Runner."""
        return self.runner.sample(masks)

    def memory(self) -> tuple[int, int]:
        """See memory_of."""
        return memory_of(self.model.device)


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes allocated now and at the peak; on the CPU the process's resident ones."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak, peak
    return pages * os.sysconf("SC_PAGE_SIZE"), peak

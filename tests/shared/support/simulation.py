"""What the simulator is built as, what it records of each request, and what it counts."""

from dataclasses import dataclass, field

from support.toy_device import Oracle

from quire.engine.request import FinishReason, GenerationRequest


@dataclass(frozen=True, slots=True)
class Shape:
    """How an engine is built. `depth`: steps that may be in flight when the next is planned.
    `window`: tokens that layers with one see; `window_blocks`: in a cache of their own, where
    others see all; 0: all layers are alike."""

    num_blocks: int = 17
    block_size: int = 4
    max_num_seqs: int = 4
    max_num_batched_tokens: int = 16
    max_model_len: int = 48
    two_phase: bool = False
    caching: bool = True
    depth: int = 1
    vocab: int = 5
    pool_seed: int | None = None
    window: int | None = None
    window_blocks: int = 0


@dataclass(slots=True)
class Record:
    """One index as its client sees it."""

    spec: GenerationRequest
    oracle: Oracle
    tokens: list[int] = field(default_factory=list)
    started: bool = False
    ended: FinishReason | None = None
    dropped: int = 0  # tokens handed out and not kept
    cut: FinishReason | None = None  # the end that was asked for from outside


@dataclass(slots=True)
class Tally:
    """What a run has seen. Adds up over simulators."""

    steps: int = 0
    turns: int = 0
    preemptions: int = 0
    hits: int = 0
    evictions: int = 0
    aborts_in_flight: int = 0
    duplicates: int = 0
    partial_copies: int = 0  # hits that copied the beginning of a block
    forks: int = 0
    resumed: int = 0
    failures: int = 0
    finishes: int = 0
    discarded: int = 0
    stale_epochs: int = 0
    ended: int = 0
    refused: int = 0

    def add(self, other: "Tally") -> None:
        """Count the other run's events too."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

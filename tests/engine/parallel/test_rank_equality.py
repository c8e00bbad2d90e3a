"""Several ranks answer as one: bit for bit among themselves, and as far as rounding lets them with
the model that is not shared out.

Ranks are threads here, which hear the real codec's bytes through the real follower; and processes
where the threads stand in for the reference: sums of the same shards in the same order.
"""

import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import programs
from support.patience import PATIENCE
from support.ranks import as_ranks
from support.small_engine import (
    Outcome,
    Setup,
    WatchedOps,
    build_core,
    load_model,
    model_config,
    run,
)
from torch import Tensor

from quire.engine.config import EngineConfig
from quire.engine.model.config import QWEN2, ModelConfig
from quire.engine.model.layers.parallel import World
from quire.engine.parallel import process
from quire.engine.parallel.follower import follow
from quire.engine.parallel.frame_channel import Kind
from quire.engine.parallel.leader import LeadingRunner
from quire.engine.parallel.process import Program
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.scheduling.matching import Constrained, constrained
from quire.engine.scheduling.plan import Masks, StepPlan, StepResult
from quire.engine.startup.build_engine import build_engine
from quire.engine.startup.build_rank import build_rank
from quire.engine.weights.random import save_random

MAX_TOKENS = 14
PLAIN = SamplingParams(max_tokens=MAX_TOKENS)
SAMPLINGS = (
    PLAIN,
    replace(PLAIN, temperature=0.9, seed=11),
    replace(PLAIN, temperature=1.1, top_k=40, top_p=0.9, min_p=0.01, seed=5),
    replace(PLAIN, repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.1),
    replace(PLAIN, temperature=0.8, seed=3, logit_bias=((8, 1.5),), banned_token_ids=(9,)),
    replace(PLAIN, temperature=1.0, seed=4),
)
# Chunks, hits, siblings, and blocks for about half of the requests at once.
CROWDED = Setup(
    max_num_seqs=6, max_num_batched_tokens=24, num_blocks=26, caching=True, overlap=True
)


def shape(kv_heads: int, *, tied: bool) -> ModelConfig:
    """With a vocabulary that no number of ranks divides."""
    return model_config(q_heads=8, kv_heads=kv_heads, head_dim=8, tied=tied, vocab=383)


def both_kinds() -> ModelConfig:
    """Some layers see all, some a window."""
    plain = replace(shape(4, tied=True), architecture=QWEN2, num_layers=3)
    return replace(plain, sliding_window=10, full_layers=(1,))


def requests() -> list[GenerationRequest]:
    """One of them asks for its prompt's log-probabilities: every rank has a part in them."""
    text = [(37 * i * i + 11 * i) % 382 + 1 for i in range(40)]
    judged = {1: 2}
    return [
        GenerationRequest(
            key, tuple(text[: 9 + 5 * key]), sampling, n=2, prompt_logprobs=judged.get(key)
        )
        for key, sampling in enumerate(SAMPLINGS)
    ]


class Even:
    """A constraint that lets even ids follow."""

    def mask(self) -> bytearray:
        return bytearray(b"\x55" * 48)

    def accept(self, token_id: int) -> None:
        assert token_id % 2 == 0

    def may_end(self) -> bool:
        return False

    def copy(self) -> "Even":
        return Even()


def constraint_of(spec: GenerationRequest) -> list[Constrained]:
    """The last sampling's stands under it."""
    return constrained(Even(), spec) if spec.sampling.seed == 4 else []


@dataclass
class Mouth:
    """What LeadingRunner says to, in place of processes."""

    ears: list["queue.Queue[tuple[Kind, bytes]]"]

    def send(self, kind: Kind, body: bytes) -> None:
        for ear in self.ears:
            ear.put((kind, body))


@dataclass
class Ear:
    """A follower's channel."""

    frames: "queue.Queue[tuple[Kind, bytes]]"

    def receive(self) -> tuple[Kind, bytes]:
        return self.frames.get(timeout=PATIENCE)

    def send_json(self, kind: Kind, **values: Any) -> None:
        """Nobody listens."""


@dataclass
class Following:
    """A follower over a core's runner."""

    runner: Any

    def execute(self, plan: StepPlan) -> Any:
        return self.runner.execute(plan)

    def sample(self, masks: Masks) -> Any:
        return self.runner.sample(masks)

    def memory(self) -> tuple[int, int]:
        return 0, 0


class Scores(WatchedOps):
    """Keeps what is chosen from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def _note(self, scores: Tensor) -> None:
        super()._note(scores)
        self.seen.append(scores.clone())


def shared(config: ModelConfig, size: int) -> tuple[dict[tuple[int, int], Outcome], list[Scores]]:
    """What the requests get of so many ranks, and what each has chosen from."""
    ears: list[queue.Queue[tuple[Kind, bytes]]] = [queue.Queue() for _ in range(size - 1)]

    def one(world: World) -> tuple[Any, Scores]:
        ops = Scores()
        model, _ = load_model(config, 3, world, ops)
        core = build_core(model, ops, CROWDED)
        with ops.watched():
            if world.rank:
                follow(Following(core.runner), Ear(ears[world.rank - 1]))  # type: ignore[arg-type]
                return None, ops
            mouth = Mouth(ears)
            core.runner = LeadingRunner(core.runner, mouth)  # type: ignore[arg-type]
            try:
                return run(core, requests(), constraint_of), ops
            finally:
                mouth.send(Kind.STOP, b"{}")

    results = as_ranks(size, one)
    return results[0][0], [ops for _, ops in results]


@dataclass
class Alone:
    """Of each request alone on one rank: tokens, and by how much each was chosen."""

    tokens: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    margins: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    largest: float = 0.0  # of the scores


def alone(config: ModelConfig) -> Alone:
    ops = Scores()
    model, _ = load_model(config, 3, World(), ops)
    found = Alone()
    for spec in requests():
        with ops.watched() as left:
            outcomes = run(build_core(model, ops, Setup()), [spec], constraint_of)
        for index in range(spec.n):
            tokens = outcomes[spec.key, index].token_ids
            found.tokens[spec.key, index] = tokens
            found.margins[spec.key, index], left = left[: len(tokens)], left[len(tokens) :]
    found.largest = max(float(s[s.isfinite()].abs().max()) for s in ops.seen)
    return found


@pytest.mark.parametrize(
    ("kv_heads", "tied", "sizes"),
    [
        (1, True, (2, 4)),
        (2, False, (4,)),
        pytest.param(4, True, (4,), marks=pytest.mark.long),
        (8, False, (2,)),
        pytest.param(8, False, (8,), marks=pytest.mark.long),
    ],
)
def test_ranks_choose_from_the_same_bits_and_as_one_does(
    kv_heads: int, tied: bool, sizes: tuple[int, ...]
) -> None:
    check_ranks(shape(kv_heads, tied=tied), sizes)


def test_ranks_have_two_caches_each_where_layers_differ() -> None:
    check_ranks(both_kinds(), (2,))


def check_ranks(config: ModelConfig, sizes: tuple[int, ...]) -> None:
    expected = alone(config)
    for size in sizes:
        outcomes, (first, *others) = shared(config, size)
        for other in others:
            assert len(other.seen) == len(first.seen) > MAX_TOKENS
            assert all(map(torch.equal, other.seen, first.seen))
        assert max(outcome.preemptions for outcome in outcomes.values()) > 0
        compared = excused = 0
        for place, wanted in expected.tokens.items():
            tokens = outcomes[place].token_ids
            assert len(tokens) == len(wanted)
            for at, (token, other_token) in enumerate(zip(tokens, wanted, strict=True)):
                if token != other_token:
                    assert expected.margins[place][at] < 1e-5 * expected.largest
                    excused += 1
                    break
                compared += 1
        heads = config.num_kv_heads
        print(f"{heads} KV heads, {size} ranks: {compared} tokens equal, {excused} excused")
        assert excused <= 1 and compared > 100


# ---------------------------------------------------------------- processes

RANK = [sys.executable, "-P", "-m", "quire.service.app.rank_child", "text", "warning"]


@pytest.fixture
def threads_given_back() -> Iterator[None]:
    """Ranks share out the CPU's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_given_back")
@pytest.mark.parametrize(
    "size", [2, *(pytest.param(size, marks=pytest.mark.long) for size in (4, 8))]
)
def test_processes_compute_the_bits_that_threads_do(size: int, tmp_path: Path) -> None:
    """Of plans with everything in them; log-probabilities show the bits of the logits."""
    save_random(shape(2, tied=size == 2), tmp_path, seed=2, dtype=torch.float32)
    config = EngineConfig(
        model=str(tmp_path),
        device="cpu",
        dtype="float32",
        tensor_parallel_size=size,
        block_size=16,
        num_blocks=12,
        max_num_seqs=6,
        max_num_batched_tokens=24,
    )
    with programs.forking(process):
        engine = build_engine(config, lambda _stage, _share: None, rank_program=Program(RANK))
    assert engine.ranks is not None
    told: list[tuple[StepPlan, Masks]] = []
    results: list[StepResult] = []
    leader = engine.core.runner
    execute, sample = leader.execute, leader.sample

    def noted(pending: Any) -> Any:
        if pending is not None:
            results.append(pending.wait())
        return pending

    def executed(plan: StepPlan) -> Any:
        told.append((plan, ()))
        return noted(execute(plan))

    def sampled(masks: Masks) -> Any:
        told[-1] = (told[-1][0], masks)
        return noted(sample(masks))

    leader.execute, leader.sample = executed, sampled  # type: ignore[method-assign]
    try:
        specs = [replace(one, sampling=replace(one.sampling, logprobs=20)) for one in requests()]
        outcomes = run(engine.core, specs, constraint_of)
        assert engine.stats().rank_memory[-1][0] > 0 and len(engine.stats().rank_memory) == size
    finally:
        engine.ranks.end()
    assert sum(len(outcome.token_ids) for outcome in outcomes.values()) == 12 * MAX_TOKENS
    assert any(masks for _, masks in told)
    said = threading.Lock()
    blocks: set[int] = set()

    def one(world: World) -> list[StepResult]:
        def agree(count: int, _: str) -> int:
            with said:
                blocks.add(count)
            return count

        rank = build_rank(config, world.rank, lambda: world, lambda _stage, _share: None, agree)
        return [(rank.execute(plan) or rank.sample(masks)).wait() for plan, masks in told]

    for rank in as_ranks(size, one):
        assert rank == results
    assert blocks == {13}

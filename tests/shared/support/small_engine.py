"""Real engine cores over small random models on the CPU, in fp32, with blocks of any size.

Scores may be watched on their way to the sampler: for each token sampled, how far the chosen one
stood above the next best, noise and temperature included.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quire.engine.loop.core import EngineCore
from quire.engine.model.base import CausalModel
from quire.engine.model.config import (
    GPT2,
    LLAMA,
    MISTRAL,
    PHI3,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    Experts,
    Fp8,
    Llama3Scaling,
    ModelConfig,
    RopeScaling,
)
from quire.engine.model.forward_batch import KVCache
from quire.engine.model.layers.parallel import World
from quire.engine.model.registry import build_model
from quire.engine.request import FinishReason, GenerationRequest
from quire.engine.runner.graphs import Done, Key, prompt_sizes
from quire.engine.runner.runner import PendingResult, Runner
from quire.engine.runner.sampler import Sampled
from quire.engine.runner.slots import SlotState
from quire.engine.scheduling.matching import Constrained
from quire.engine.scheduling.plan import StepPlan
from quire.engine.scheduling.two_pools import least_window_blocks
from quire.engine.startup.kv_cache import scheduler_over
from quire.engine.weights.random import fill_random
from quire.kernels import reference

CPU = torch.device("cpu")


def model_config(
    *,
    architecture: str = QWEN3,
    q_heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    tied: bool = True,
    yarn: bool = False,
    vocab: int = 384,
    layers: int = 2,
    intermediate: int = 96,
    experts: Experts | None = None,
    fp8: Fp8 | None = None,
) -> ModelConfig:
    """A model so small that a step takes about a millisecond, and whose outputs vary."""
    scaling = RopeScaling(4.0, 32, 1.1) if yarn else None
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab,
        hidden_size=48,
        num_layers=layers,
        num_q_heads=q_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        max_position_embeddings=128,
        rope_theta=1e4,
        rope_scaling=scaling,
        stored_dtype="float32",
        initializer_range=0.12,
        experts=experts,
        fp8=fp8,
    )


LLAMA3 = Llama3Scaling(4.0, 32, 1.0, 4.0)
FAMILIES = {  # one model each
    "qwen2": model_config(architecture=QWEN2, q_heads=6, kv_heads=2, tied=False),
    "qwen3 with experts": model_config(
        architecture=QWEN3_MOE, tied=False, experts=Experts(6, 2, 40, True, (0,))
    ),
    "fp8 with experts": model_config(
        architecture=QWEN3_MOE,
        head_dim=64,
        tied=False,
        intermediate=128,
        experts=Experts(4, 2, 128, True, (0,)),
        fp8=Fp8(made_on_load=True),
    ),
    "llama": replace(model_config(architecture=LLAMA, tied=False), rope_scaling=LLAMA3),
    "mistral": replace(model_config(architecture=MISTRAL, tied=False), sliding_window=11),
    "phi3": model_config(architecture=PHI3, tied=False),
    "fp8 cache": model_config(tied=False),
    "fp8 cache, mistral": replace(
        model_config(architecture=MISTRAL, tied=False), sliding_window=11
    ),
    "gpt2": model_config(architecture=GPT2, q_heads=3, kv_heads=3),
    "qwen2, both": replace(
        model_config(architecture=QWEN2, tied=False, layers=3), sliding_window=11, full_layers=(1,)
    ),
    "fp8 cache, both": replace(
        model_config(architecture=QWEN2, tied=False), sliding_window=6, full_layers=(0,)
    ),
}


class WatchedOps:
    """The reference kernels; notes of each sampled row how close the decision was, when asked."""

    def __init__(self) -> None:
        self._margins: list[float] | None = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[float]]:
        """What is noted while this lasts. To see it costs as much as to sample."""
        self._margins = []
        yield self._margins
        self._margins = None

    def __getattr__(self, name: str) -> Any:
        return getattr(reference, name)

    def greedy(self, logits: Tensor) -> Tensor:
        if self._margins is not None:
            self._note(logits)
        return reference.greedy(logits)

    def sample(
        self, logits: Tensor, slots: Tensor, positions: Tensor, temperature: Tensor, seeds: Tensor
    ) -> Tensor:
        if self._margins is not None:
            heat = temperature[slots]
            noise = reference.exponential_noise(seeds[slots], positions, logits.shape[1]).log()
            hot = logits / heat.clamp_min(1e-9)[:, None] - noise
            self._note(torch.where(heat[:, None] > 0, hot, logits))
        return reference.sample(logits, slots, positions, temperature, seeds)

    def _note(self, scores: Tensor) -> None:
        assert self._margins is not None
        best = scores.topk(2, dim=-1).values
        self._margins.extend((best[:, 0] - best[:, 1]).tolist())


class PaddedRunner(Runner):
    """Runs the steps that a GPU would capture, padded as they would be, one by one.

    What stands in for a graph is the step's own function: it reads nothing but the slots and the
    upload, so running it again is a replay.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.kept: dict[Key, tuple[Callable[[], Done], ...]] = {}
        self.begun: list[Key] = []
        self._begun: Key | None = None
        self.padded_rows = 0
        self._graphs = self  # type: ignore[assignment]

    def __contains__(self, key: Key) -> bool:
        return key in self.kept

    def capture(self, key: Key, *parts: Callable[[], Done], ran: bool = True) -> None:
        del ran
        self.kept[key] = parts

    def begin(self, key: Key) -> None:
        parts = self.kept.get(key, ())
        if len(parts) > 1:
            parts[0]()
            self._begun = key
            self.begun.append(key)

    def replay(self, key: Key) -> Done | None:
        begun, self._begun = self._begun == key, None
        done = None
        for part in self.kept.get(key, ())[begun:]:
            done = part()
        return done

    def _collect(self, plan: StepPlan, sampled: Sampled) -> PendingResult:
        """The real rows of a padded step: the first."""
        self.padded_rows += len(sampled.tokens) - sum(row.samples for row in plan.rows)
        return super()._collect(plan, sampled)


@dataclass(frozen=True, slots=True)
class Setup:
    """How an engine is to run. The default is the reference: alone, whole, uncached, plain."""

    max_num_seqs: int = 1
    max_num_batched_tokens: int = 256
    num_blocks: int = 129
    block_size: int = 4
    max_model_len: int = 128
    caching: bool = False
    overlap: bool = False
    two_phase: bool = False
    padded: bool = False
    cache_dtype: torch.dtype = torch.float32
    window_share: float = 0.6  # of num_blocks, in the cache of windows where others see all


def load_model(
    config: ModelConfig, seed: int, world: World | None = None, ops: WatchedOps | None = None
) -> tuple[CausalModel, WatchedOps]:
    """A model with random weights, on watched kernels."""
    ops = ops or WatchedOps()
    model = build_model(config, ops, dtype=torch.float32, device=CPU, world=world)  # type: ignore[arg-type]
    fill_random(model, seed)
    return model, ops


def build_core(model: CausalModel, ops: WatchedOps, setup: Setup) -> EngineCore:
    """An engine core with a cache of its own over a model that may be shared."""
    config = model.config
    kv = new_cache(model, setup)
    max_blocks = -(-setup.max_model_len // setup.block_size)
    size = setup.max_num_seqs, max_blocks, config.vocab_size
    state = SlotState(*size, CPU, two_tables=kv.window is not None)
    make = PaddedRunner if setup.padded else Runner
    runner = make(
        model,
        ops,  # type: ignore[arg-type]
        kv,
        state,
        max_model_len=setup.max_model_len,
        prompt_tokens=prompt_sizes(setup.max_model_len, setup.max_num_batched_tokens),
        use_graphs=False,
    )
    scheduler = scheduler_over(
        kv,
        config.sliding_window,
        max_num_seqs=setup.max_num_seqs,
        max_num_batched_tokens=setup.max_num_batched_tokens,
        max_model_len=setup.max_model_len,
        two_phase=setup.two_phase,
        caching=setup.caching,
    )
    return EngineCore(scheduler, runner, overlap=setup.overlap)


def new_cache(model: CausalModel, setup: Setup) -> KVCache:
    """NaN but for the null blocks; that of windows has what a lone request needs at least."""
    config, size = model.config, setup.block_size
    tokens = min(setup.max_num_batched_tokens, setup.max_model_len)
    usable = setup.num_blocks - 1
    least = least_window_blocks(config.sliding_window or 0, size, tokens, usable)
    blocks = setup.num_blocks, 1 + max(least, int(usable * setup.window_share))
    new = partial(torch.full, fill_value=torch.nan, dtype=setup.cache_dtype)
    kv = KVCache.made(config, model.num_kv_heads, blocks, size, new)
    for one in (kv, kv.window or kv):
        one.k[:, 0].zero_()
        one.v[:, 0].zero_()
    return kv


@dataclass(slots=True)
class Outcome:
    """What came of one index."""

    token_ids: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    cached_tokens: int = 0
    preemptions: int = 0


def run(
    core: EngineCore,
    specs: Iterable[GenerationRequest],
    constraint_of: Callable[[GenerationRequest], Sequence[Constrained]] = lambda _: (),
) -> dict[tuple[int, int], Outcome]:
    """Submit all and run to the end. Raises AssertionError if something is left."""
    outcomes: dict[tuple[int, int], Outcome] = {}
    tokens = 0
    for spec in specs:
        core.scheduler.submit(spec, constraint_of(spec))
        tokens += spec.n * (len(spec.prompt_token_ids) + spec.sampling.max_tokens)
    for _ in range(8 * tokens + 16):
        if not core.scheduler.has_requests:
            break
        for output in core.step():
            outcome = outcomes.setdefault((output.key, output.index), Outcome())
            outcome.token_ids += output.token_ids
            outcome.cached_tokens = max(outcome.cached_tokens, output.cached_tokens)
            outcome.preemptions = max(outcome.preemptions, output.preemptions)
            if output.finish is not None:
                assert outcome.finish is None
                outcome.finish = output.finish
    assert not core.scheduler.has_requests
    for pool in core.scheduler.pools:
        pool.check([])
        assert pool.num_free == pool.num_usable
    return outcomes

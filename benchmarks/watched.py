"""Engines whose logits are logged on the device, whatever runs the step: eager, captured, ahead.

Invariant: the log is written by the step itself, at [seed, position] of the token to be sampled, so
it needs no host, survives capture, and means the same request in whatever slot or batch it stood.
Seeds are therefore the requests' keys, from 1; row 0 belongs to the null slot.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from quire.engine.config import EngineConfig
from quire.engine.model.config import ModelConfig
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.runner import runner as runner_module
from quire.engine.runner.sampler import Sampled, Sampler
from quire.engine.runner.slots import SlotState
from quire.engine.startup.build_engine import Engine, build_engine
from quire.engine.weights.random import save_random
from quire.kernels.ops import Ops

MAX_MODEL_LEN = 256
BLOCK_SIZE = 16
MAX_TOKENS = 24
MAX_KEYS = 32

# The layers of the 0.6B shape, so that its tuned products run; few of them, and few ids.
SHAPE = replace(
    ModelConfig.named_shape("0.6B"),
    num_layers=3,
    vocab_size=8192,
    tie_word_embeddings=False,
    max_position_embeddings=1024,
    eos_token_ids=(),
    initializer_range=0.03,
)


class Log:
    """logits [MAX_KEYS, MAX_MODEL_LEN + 1, V] fp32, by seed and position of the sampled token."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        shape = (MAX_KEYS, MAX_MODEL_LEN + 1, vocab)
        self.logits = torch.zeros(shape, dtype=torch.float32, device=device)


def watching(logs: list[Log]) -> type[Sampler]:
    """A Sampler that logs what it is given before it samples. Its log is appended to `logs`."""

    class Watching(Sampler):
        def __init__(self, ops: Ops, state: SlotState, *more: Any) -> None:
            super().__init__(ops, state, *more)
            self._seeds = state.seeds
            self._log = Log(state.prompt_mask.shape[1], state.seeds.device)
            logs.append(self._log)

        def __call__(self, logits: Tensor, slots: Tensor, positions: Tensor, *more: Any) -> Sampled:
            self._log.logits[self._seeds[slots.long()], positions.long()] = logits
            return super().__call__(logits, slots, positions, *more)

    return Watching


@cache
def model_directory(shape: ModelConfig = SHAPE) -> tempfile.TemporaryDirectory[str]:
    """A checkpoint of random weights; removed at the end of the process."""
    directory = tempfile.TemporaryDirectory()
    save_random(shape, Path(directory.name), seed=7, dtype=torch.bfloat16)
    return directory


@dataclass(frozen=True)
class Way:
    """How requests are served. `apart`: turns of the loop between arrivals; `alone`: one after the
    other; `passes`: how often the same traffic is served, the last time counts."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    apart: int = 0
    alone: bool = False
    passes: int = 1
    pdl: bool | None = None

    def config(self, model: str, dtype: str) -> EngineConfig:
        options: dict[str, Any] = {
            "max_num_seqs": 8,
            "max_num_batched_tokens": 2048,
            "max_model_len": MAX_MODEL_LEN,
            "block_size": BLOCK_SIZE,
            "num_blocks": 400,
            "enable_prefix_caching": False,
            "overlap": False,
            "enforce_eager": True,
        }
        return EngineConfig(model=model, dtype=dtype, **(options | dict(self.options)))


@dataclass
class Served:
    """What the last pass gave. logits: [sampled tokens, V] fp32 on the CPU, for each key."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    logits: dict[int, Tensor] = field(default_factory=dict)
    cached_tokens: int = 0
    preemptions: int = 0
    mixed_steps: int = 0
    graph_steps: int = 0
    eager_steps: int = 0


class WatchedEngine:
    """An engine over the random model, with the log of its logits."""

    def __init__(self, way: Way, dtype: str, *, watch: bool = True) -> None:
        self.way = way
        self._logs: list[Log] = []
        sampler = watching(self._logs) if watch else Sampler
        with current_stream_kept(), mock.patch.object(runner_module, "Sampler", sampler):
            self.engine: Engine = build_engine(
                way.config(model_directory().name, dtype), lambda _stage, _share: None, pdl=way.pdl
            )
            self._stream = _current_stream()
            runner, core = self.engine.runner, self.engine.core
            for _ in runner._sizes.common_keys():  # what a server captures while it is idle
                core.use_spare_time()

    def serve(self, specs: Sequence[GenerationRequest]) -> Served:
        """Serve the requests, `passes` times."""
        with on_stream(self._stream):
            for _ in range(self.way.passes):
                served = self._once(specs)
        return served

    def _once(self, specs: Sequence[GenerationRequest]) -> Served:
        served, counters = Served(), self.engine.runner.counters
        scheduler = self.engine.core.scheduler
        before = counters.graph_steps, counters.eager_steps, scheduler.counters.mixed_steps
        if self.way.alone:
            for spec in specs:
                self._drive([spec], served)
        else:
            self._drive(specs, served)
        served.graph_steps = counters.graph_steps - before[0]
        served.eager_steps = counters.eager_steps - before[1]
        served.mixed_steps = scheduler.counters.mixed_steps - before[2]
        for log in self._logs:
            for spec in specs:
                first, count = len(spec.prompt_token_ids), len(served.tokens[spec.key])
                served.logits[spec.key] = log.logits[spec.key, first : first + count].to(
                    "cpu", copy=True
                )
        return served

    def _drive(self, specs: Sequence[GenerationRequest], served: Served) -> None:
        core, waiting, turn = self.engine.core, list(specs), 0
        while waiting or core.scheduler.has_requests:
            while waiting and (not self.way.apart or turn % self.way.apart == 0):
                core.scheduler.submit(waiting.pop(0))
                if self.way.apart:
                    break
            for output in core.step():
                if output.error_id is not None:
                    raise RuntimeError(f"{self.way.name}: a step failed ({output.error_id})")
                served.tokens.setdefault(output.key, []).extend(output.token_ids)
                served.cached_tokens += output.cached_tokens if output.started else 0
                served.preemptions = max(served.preemptions, output.preemptions)
            turn += 1


def requests(count: int, sampling: SamplingParams) -> list[GenerationRequest]:
    """Prompts of lengths around block boundaries; each third one shares the longest one's text."""
    lengths = (1, 15, 16, 17, 31, 33, 48, 63, 64, 65, 90)
    text = [(7919 * i * i + 104_729 * i) % (SHAPE.vocab_size - 1) + 1 for i in range(128)]
    specs = []
    for index in range(count):
        length = lengths[index % len(lengths)]
        own = [(token * (index + 3)) % (SHAPE.vocab_size - 1) + 1 for token in text]
        prompt = text[:length] if index % 3 == 2 else own[:length]
        params = replace(sampling, seed=index + 1, max_tokens=MAX_TOKENS)
        specs.append(GenerationRequest(index + 1, tuple(prompt), params))
    return specs


def _current_stream() -> Any:
    return torch.cuda.current_stream() if torch.cuda.is_available() else None


@contextlib.contextmanager
def on_stream(stream: Any) -> Iterator[None]:
    """The engine's own stream, where there is one; what came before has ended, and so has this."""
    if stream is None:
        yield
        return
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        yield
    torch.cuda.synchronize()


@contextlib.contextmanager
def current_stream_kept() -> Iterator[None]:
    """Building an engine makes its stream the thread's own: give the former one back."""
    stream = _current_stream()
    try:
        yield
    finally:
        if stream is not None:
            torch.cuda.synchronize()
            torch.cuda.set_stream(stream)

"""The engines that the offline benchmark compares, behind one face: token ids in, tokens counted.

`generate` runs a batch to its end and returns the number of tokens made; `forget` clears the prefix
cache. Each engine runs alone in its process, in the same conditions.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

MAX_MODEL_LEN = 4096
MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 16_384  # what vLLM takes offline on such a card


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request: ids in, exactly max_tokens out."""

    prompt: Sequence[int]
    max_tokens: int
    temperature: float = 0.0


class OfflineEngine(Protocol):
    """What the workloads need."""

    def generate(self, asks: Sequence[Ask]) -> int: ...

    def forget(self) -> None: ...

    def rows_that_fit(self, tokens: int) -> int | None:
        """How many requests of so many tokens the cache holds at once; None: not known."""


class QuireEngine:
    """Quire's own loop, driven from here: no threads, no text, no gRPC."""

    def __init__(self, model: str, *, pdl: bool | None = None, **options: Any) -> None:
        from quire.engine.config import EngineConfig
        from quire.engine.loop import garbage
        from quire.engine.parallel.process import Program
        from quire.engine.startup.build_engine import build_engine

        defaults: dict[str, Any] = {
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": MAX_NUM_SEQS,
            "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
        }
        self.config = EngineConfig(model=model, **(defaults | options))
        rank = [sys.executable, "-P", "-m", "quire.service.app.rank_child", "text", "warning"]
        self.engine = build_engine(
            self.config, lambda _stage, _share: None, pdl=pdl, rank_program=Program(rank)
        )
        while self.engine.core.use_spare_time():  # as a server does before its first call
            pass
        garbage.freeze()  # as the server does
        self._key = 0

    def generate(self, asks: Sequence[Ask]) -> int:
        return self.generate_bounded(asks, len(asks))

    def generate_bounded(self, asks: Sequence[Ask], most: int) -> int:
        """The same, with at most so many requests in the engine at once."""
        scheduler, core = self.engine.core.scheduler, self.engine.core
        left, made, running = list(reversed(asks)), 0, 0
        while left or scheduler.has_requests:
            while left and running < most:
                self._submit(left.pop())
                running += 1
            for output in core.step():
                made += len(output.token_ids)
                running -= output.finish is not None
        return made

    def _submit(self, ask: Ask) -> None:
        from quire.engine.request import GenerationRequest, SamplingParams

        self._key += 1
        params = SamplingParams(
            temperature=ask.temperature,
            max_tokens=ask.max_tokens,
            seed=self._key,
            ignore_eos=True,
        )
        request = GenerationRequest(self._key, tuple(ask.prompt), params)
        self.engine.core.scheduler.submit(request)

    def forget(self) -> None:
        self.engine.core.scheduler.pool.forget_all()

    def end(self) -> None:
        """The other ranks' end, where there are any."""
        if self.engine.ranks is not None:
            self.engine.ranks.end()

    def rows_that_fit(self, tokens: int) -> int | None:
        return self.engine.core.scheduler.pool.num_usable // -(-tokens // self.config.block_size)


class VllmEngine:
    """vLLM's offline LLM, where it is installed."""

    def __init__(self, model: str, **options: Any) -> None:
        from vllm import LLM  # type: ignore[import-not-found]

        defaults: dict[str, Any] = {
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": MAX_NUM_SEQS,
            "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
            "load_format": "auto" if (Path(model) / "model.safetensors").exists() else "dummy",
            "skip_tokenizer_init": True,
        }
        self._llm = LLM(model=model, **(defaults | options))

    def generate(self, asks: Sequence[Ask]) -> int:
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=ask.temperature,
                max_tokens=ask.max_tokens,
                ignore_eos=True,
                detokenize=False,
            )
            for ask in asks
        ]
        prompts = [{"prompt_token_ids": list(ask.prompt)} for ask in asks]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    def forget(self) -> None:
        self._llm.reset_prefix_cache()

    def rows_that_fit(self, tokens: int) -> int | None:
        del tokens
        return None


class TransformersEngine:
    """transformers' generate over left-padded batches, where it is installed."""

    def __init__(self, model: str, **options: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        if options:
            raise SystemExit(f"--engine transformers takes no options, got {options}")
        self._torch = torch
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(device)

    def generate(self, asks: Sequence[Ask]) -> int:
        torch = self._torch
        width, most = max(len(a.prompt) for a in asks), max(a.max_tokens for a in asks)
        ids = torch.tensor([[0] * (width - len(a.prompt)) + list(a.prompt) for a in asks])
        mask = torch.tensor([[0] * (width - len(a.prompt)) + [1] * len(a.prompt) for a in asks])
        device = self._model.device
        with torch.inference_mode():
            self._model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=most,
                min_new_tokens=most,
                do_sample=asks[0].temperature > 0,
                temperature=asks[0].temperature or None,
                pad_token_id=0,
            )
        return sum(ask.max_tokens for ask in asks)

    def forget(self) -> None:
        """It keeps nothing between calls."""

    def rows_that_fit(self, tokens: int) -> int | None:
        del tokens
        return None


ENGINES = {"quire": QuireEngine, "vllm": VllmEngine, "transformers": TransformersEngine}


def timed(engine: OfflineEngine, asks: Sequence[Ask]) -> float:
    """Seconds for a batch, and a check that every token came."""
    begin = time.perf_counter()
    made = engine.generate(asks)
    elapsed = time.perf_counter() - begin
    wanted = sum(ask.max_tokens for ask in asks)
    if made != wanted:
        raise RuntimeError(f"{made} tokens came, {wanted} were asked for")
    return elapsed

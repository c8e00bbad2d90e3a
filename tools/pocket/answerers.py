"""What the evaluation can ask: each engine turns prompts into answers.

Invariant: an answer's ids include the EOS that ended it, and nothing after; an answer without one
at its end ran into its limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch


class Engine(Protocol):
    """Prompts in, answers out, in order."""

    def generate(
        self,
        prompts: Sequence[list[int]],
        limits: Sequence[int],
        temperature: float = 0.0,
    ) -> list[list[int]]:
        """The answer to each prompt (ids), of at most its limit of tokens."""
        ...


class Transformers:
    """Hugging Face's own generate, in fp32, prompts of like length together."""

    ROWS = 32

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModelForCausalLM

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self._model.to(device).eval()
        self._eos = set(self._model.generation_config.eos_token_id)
        self._pad = int(self._model.generation_config.pad_token_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._model

    def generate(
        self,
        prompts: Sequence[list[int]],
        limits: Sequence[int],
        temperature: float = 0.0,
    ) -> list[list[int]]:
        """See Engine."""
        torch.manual_seed(0)  # decides the sampled answers
        order = sorted(range(len(prompts)), key=lambda at: (len(prompts[at]), limits[at]))
        answers: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), self.ROWS):
            part = order[start : start + self.ROWS]
            longest = max(limits[at] for at in part)
            found = self._part([prompts[at] for at in part], longest, temperature)
            for at, ids in zip(part, found, strict=True):
                answers[at] = self._cut(ids)[: limits[at]]
        return answers

    @torch.no_grad()
    def _part(self, prompts: list[list[int]], limit: int, temperature: float) -> list[list[int]]:
        longest = max(map(len, prompts))
        padded = [[self._pad] * (longest - len(ids)) + ids for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        device = self._model.device
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
        out = self._model.generate(
            torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=limit,
            **(sampling if temperature else {"do_sample": False}),
        )
        return [row.tolist() for row in out[:, longest:]]

    def _cut(self, ids: list[int]) -> list[int]:
        ends = [at for at, token in enumerate(ids) if token in self._eos]
        return ids[: ends[0] + 1] if ends else ids

    @torch.no_grad()
    def gap(self, ids: list[int]) -> float:
        """The distance of the two best logits after `ids`."""
        logits = self._model(torch.tensor([ids], device=self._model.device)).logits[0, -1]
        best = logits.topk(2).values
        return float(best[0] - best[1])


class Quire:
    """Quire's engine in this process, all prompts submitted at once, sharing steps and prefixes."""

    def __init__(self, directory: Path) -> None:
        from quire.engine.client.async_engine import AsyncEngine
        from quire.engine.client.in_thread import ThreadLink
        from quire.engine.config import EngineConfig

        self._loop = asyncio.new_event_loop()
        config = EngineConfig(model=str(directory), dtype="float32", max_num_batched_tokens=2048)
        self._engine = AsyncEngine(ThreadLink(config))
        self._loop.run_until_complete(self._engine.start())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.run_until_complete(self._engine.stop())
        self._loop.close()

    def generate(
        self,
        prompts: Sequence[list[int]],
        limits: Sequence[int],
        temperature: float = 0.0,
    ) -> list[list[int]]:
        """See Engine."""
        return self._loop.run_until_complete(self._all(prompts, limits, temperature))

    async def _all(
        self, prompts: Sequence[list[int]], limits: Sequence[int], temperature: float
    ) -> list[list[int]]:
        asked = zip(prompts, limits, strict=True)
        one = (self._one(at, ids, limit, temperature) for at, (ids, limit) in enumerate(asked))
        return list(await asyncio.gather(*one))

    async def _one(self, seed: int, prompt: list[int], limit: int, temperature: float) -> list[int]:
        from quire.engine.request import FinishReason, GenerationRequest, SamplingParams

        sampling = SamplingParams(
            temperature=temperature,
            seed=seed,
            max_tokens=limit,
            eos_token_ids=self._engine.info.eos_token_ids,
        )
        request = GenerationRequest(self._engine.new_key(), tuple(prompt), sampling)
        ids: list[int] = []
        async for outputs in self._engine.generate(request):
            for output in outputs:
                ids += output.token_ids
                if output.finish is FinishReason.ERROR:
                    raise RuntimeError(f"the engine failed a step ({output.error_id})")
        return ids


ENGINES: dict[str, Callable[[Path], AbstractContextManager[Engine]]] = {
    "quire": Quire,
    "transformers": Transformers,
}

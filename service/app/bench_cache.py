"""`quire bench-cache`: what the prefix cache saves, and what a KV cache saves.

Two tables from one run. The first serves the same requests, which share a long beginning, with the
prefix cache on and off. The second decodes one request with Quire's paged cache, with transformers'
own cache, and with none (the whole sequence again for each token), on the same weights.

Invariant: all ways of a table do the same work; every figure was measured in this run.
"""

import asyncio
import gc
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.loop.stats import EngineInfo
from quire.engine.model.shape import RANDOM_PREFIX, model_config
from quire.service.app.local import Local, local
from quire.service.models.resolve import resolve
from quire.v1 import inference_pb2 as pb

_SHARED_SHARE = 0.5  # of max_model_len, that all requests begin with
_MOST_SHARED = 1024
_OWN = 16  # tokens of each request that no other has
_ANSWER = 8  # tokens that each makes
_DECODE_PROMPT = 32
_ROUNDS = 3
_FIRST_ID = 256  # lower ids may be special


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """requests: of the first table; tokens: that the second decodes."""

    requests: int = 16
    tokens: int = 64

    def __post_init__(self) -> None:
        if self.requests < 2:
            raise ConfigError(f"requests = {self.requests}: must be at least 2")
        if self.tokens < 2:
            raise ConfigError(f"tokens = {self.tokens}: must be at least 2")


@dataclass(frozen=True, slots=True)
class PrefixResult:
    """Serving the requests of the first table. Seconds and prompt tokens."""

    seconds: float
    prompt: int
    computed: int
    hit: int


def request(ids: list[int], max_tokens: int) -> pb.GenerateRequest:
    """Greedy, to the last token."""
    sampling = pb.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, seed=0)
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=sampling, ids_only=True)


def made_up(count: int, start: int, vocab_size: int) -> list[int]:
    """Token ids that differ from place to place."""
    room = vocab_size - _FIRST_ID
    return [_FIRST_ID + (start * 7919 + i * 104_729) % room for i in range(count)]


async def measure_prefix(engine: Local, requests: int) -> PrefixResult:
    """The first request alone, then all others at once."""
    info = engine.model.info
    shared = made_up(min(int(info.max_model_len * _SHARED_SHARE), _MOST_SHARED), 0, info.vocab_size)
    prompts = [[*shared, *made_up(_OWN, i + 1, info.vocab_size)] for i in range(requests)]
    before, began = engine.engine.stats(), time.monotonic()
    await engine.complete(request(prompts[0], _ANSWER))
    await asyncio.gather(*(engine.complete(request(p, _ANSWER)) for p in prompts[1:]))
    seconds, after = time.monotonic() - began, engine.engine.stats()
    return PrefixResult(
        seconds,
        after.prompt_tokens - before.prompt_tokens,
        after.prefill_computed - before.prefill_computed,
        after.prefix_tokens_hit - before.prefix_tokens_hit,
    )


async def measure_decode(engine: Local, tokens: int) -> float:
    """Seconds a token of one request, prefill left out."""
    prompt = made_up(_DECODE_PROMPT, 0, engine.model.info.vocab_size)
    done = await engine.complete(request(prompt, tokens))
    return (done.total - done.first_token) / (tokens - 1)


def run_bench(config: EngineConfig, options: BenchOptions) -> int:
    """The command. Returns the exit code."""
    return asyncio.run(_run(config, options))


async def _run(config: EngineConfig, options: BenchOptions) -> int:
    console, prefix = Console(), {}
    async with local(config.replace(enable_prefix_caching=False)) as engine:
        prefix[False] = await measure_prefix(engine, options.requests)
    gc.collect()
    async with local(config.replace(enable_prefix_caching=True)) as engine:
        prefix[True] = await measure_prefix(engine, options.requests)
        console.print(_prefix_table(options, prefix))
        console.print(await _compare_decoding(config, engine, options))
    return 0


async def _compare_decoding(config: EngineConfig, engine: Local, options: BenchOptions) -> Table:
    """Three rounds, the ways in turn, so that a busy machine slows all of them; medians."""
    info = engine.model.info
    theirs = await asyncio.to_thread(_TransformersDecoding, config, info)
    await measure_decode(engine, 2)  # warm
    rounds = [
        (
            await measure_decode(engine, options.tokens),
            await asyncio.to_thread(theirs.seconds_a_token, options.tokens, True),
            await asyncio.to_thread(theirs.seconds_a_token, options.tokens, False),
        )
        for _ in range(_ROUNDS)
    ]
    medians = [statistics.median(way) for way in zip(*rounds, strict=True)]
    return _decode_table(options, info, *medians)


def _prefix_table(options: BenchOptions, results: dict[bool, PrefixResult]) -> Table:
    table = Table(title=f"{options.requests} requests with a common beginning")
    for name in ("prefix cache", "seconds", "prompt tokens", "computed", "found", "times as fast"):
        table.add_column(name, justify="right")
    slow = results[False].seconds
    for caching, result in sorted(results.items(), reverse=True):
        table.add_row(
            "on" if caching else "off",
            f"{result.seconds:.3f}",
            str(result.prompt),
            str(result.computed),
            str(result.hit),
            f"{slow / result.seconds:.2f}",
        )
    return table


def _decode_table(
    options: BenchOptions, info: EngineInfo, quire: float, cached: float, recomputed: float
) -> Table:
    title = f"one request, {options.tokens} tokens, {info.dtype} on {info.device}"
    table = Table(title=title)
    for name in ("decoding with", "ms a token", "tokens/s", "times as fast"):
        table.add_column(name, justify="right")
    for name, seconds in (
        ("Quire's paged cache", quire),
        ("transformers' cache", cached),
        ("no cache (transformers)", recomputed),
    ):
        table.add_row(
            name, f"{seconds * 1000:.2f}", f"{1 / seconds:.1f}", f"{recomputed / seconds:.2f}"
        )
    return table


class _TransformersDecoding:
    """transformers' generate on the same weights, with its cache or without."""

    def __init__(self, config: EngineConfig, info: EngineInfo) -> None:
        import torch

        self._model = _transformers_model(config, info)
        prompt = made_up(_DECODE_PROMPT, 0, info.vocab_size)
        self._ids = torch.tensor([prompt], device=self._model.device)
        for use_cache in (True, False):
            self._seconds(2, use_cache)  # warm

    def seconds_a_token(self, tokens: int, use_cache: bool) -> float:
        """Of `tokens`, without the first one's."""
        first = self._seconds(1, use_cache)
        return max(self._seconds(tokens, use_cache) - first, 1e-9) / (tokens - 1)

    def _seconds(self, count: int, use_cache: bool) -> float:
        import torch

        began = time.monotonic()
        with torch.inference_mode():
            self._model.generate(
                self._ids,
                attention_mask=torch.ones_like(self._ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                use_cache=use_cache,
                pad_token_id=0,
            ).cpu()
        return time.monotonic() - began


def _transformers_model(config: EngineConfig, info: EngineInfo) -> Any:
    """The same weights; for a random shape, random weights of the same shape."""
    import torch
    import transformers

    resolved = resolve(config)
    dtype = getattr(torch, info.dtype)
    model: Any
    if resolved.engine_model.startswith(RANDOM_PREFIX):
        model = transformers.Qwen3ForCausalLM(_transformers_config(config, resolved.engine_model))
        model = model.to(dtype)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            Path(resolved.engine_model), dtype=dtype, use_safetensors=True
        )
    device = info.device.split()[0]
    model = model.to(device).eval()
    model.generation_config.eos_token_id = None  # both decode to the last token
    return model


def _transformers_config(config: EngineConfig, engine_model: str) -> Any:
    import transformers

    shape = model_config(config.replace(model=engine_model))
    return transformers.Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_q_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        rms_norm_eps=shape.rms_norm_eps,
        tie_word_embeddings=shape.tie_word_embeddings,
        max_position_embeddings=shape.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
    )

"""Exact mode against itself: every way to serve a request gives the same logits and tokens.

    python benchmarks/exact_mode.py --model-shape 0.6B [--dtype float16] [--parts cache] [--out F]

Each request is served alone first; then beside others, in chunks, on a hit, resumed and so on. Of
each sampled token the logits' mark (the sum of their bits as integers) and the id are compared:
one that differs is a fault, and none is excused. Rows are appended to F where it exists, so that
shapes, types and parts may be run apart, each with its own commit; what an earlier process found of
the same requests alone is compared then, too.
"""

import argparse
import gc
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import commit, print_table, write_results
from torch import Tensor
from watched import current_stream_kept, on_stream

from quire.engine.config import EngineConfig
from quire.engine.model.base import CausalModel
from quire.engine.model.product import Product
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.runner import runner as runner_module
from quire.engine.runner.sampler import Sampled, Sampler
from quire.engine.startup.build_engine import build_engine
from quire.kernels.ops import Ops

REQUESTS, NEW, LONGEST = 20, 110, 1100
LENGTHS = (1, 15, 64, 65, 130, 257, 300, 513, 900, 40)
SAMPLINGS = (
    SamplingParams(),
    SamplingParams(temperature=0.8),
    SamplingParams(temperature=0.9, top_k=50, top_p=0.95, min_p=0.01),
    SamplingParams(temperature=0.7, repetition_penalty=1.2, frequency_penalty=0.3),
    SamplingParams(temperature=1.0, banned_token_ids=(5, 6, 7), logit_bias=((11, 1.5),)),
)
CHUNKS = (*range(1, 18), 64, 513)
BATCHES = (2, 4, 8, 16, 64, 256)
PARTS = ("batches", "chunks", "resumed", "siblings", "cache", "others")
FILLER = 10_000  # keys of what only stands beside


@dataclass
class Served:
    """Tokens by key, and the marks of the logits that they were chosen from."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    marks: dict[int, list[int]] = field(default_factory=dict)
    cached: int = 0
    preempted: int = 0


@dataclass
class Comparison:
    """What came of a pair: tokens compared, of them those with other bits or another id."""

    pair: str
    compared: int = 0
    other_logits: int = 0
    other_tokens: int = 0
    first: str = ""
    proof: str = ""

    def add(self, key: int, wanted: Sequence[tuple[int, int]], found: Sequence[Any]) -> None:
        """Take in one request: (mark, token) of both ways, of the same positions."""
        if len(wanted) != len(found):
            self.other_tokens += abs(len(wanted) - len(found))
        for place, (one, other) in enumerate(zip(wanted, found, strict=False)):
            self.compared += 1
            self.other_logits += one[0] != other[0]
            self.other_tokens += one[1] != other[1]
            if one != other:
                self.first = self.first or f"request {key}, token {place}"
                return  # what follows was computed from other tokens


def marking(logs: list[Tensor]) -> type[Sampler]:
    """A Sampler that marks what it is given: [seeds, positions] int64, appended to `logs`."""

    class Marking(Sampler):
        def __init__(self, ops: Ops, state: Any, *more: Any) -> None:
            super().__init__(ops, state, *more)
            self._seeds = state.seeds
            shape = (REQUESTS + 2, LONGEST + NEW + 2)
            self._log = torch.zeros(shape, dtype=torch.int64, device=state.seeds.device)
            logs.append(self._log)

        def __call__(self, logits: Tensor, slots: Tensor, positions: Tensor, *more: Any) -> Sampled:
            marks = logits.view(torch.int32).sum(-1, dtype=torch.int64)
            seeds = self._seeds[slots.long()]
            mine = torch.where((seeds > 0) & (seeds <= REQUESTS), seeds, REQUESTS + 1)
            self._log[mine, positions.long().clamp(max=LONGEST + NEW + 1)] = marks
            return super().__call__(logits, slots, positions, *more)

    return Marking


class Marked:
    """An engine in exact mode, with the marks of its logits."""

    def __init__(self, model: str, dtype: str, *, pdl: bool | None = None, **options: Any) -> None:
        gc.collect()  # what the engine before has held
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logs: list[Tensor] = []
        defaults: dict[str, Any] = {
            "max_num_seqs": 256,
            "max_model_len": LONGEST + NEW + 1,
            "num_blocks": 2500,
            "enable_prefix_caching": False,
            "exact": "on",
        }
        config = EngineConfig(model=model, dtype=dtype, **(defaults | options))
        with current_stream_kept(), mock.patch.object(runner_module, "Sampler", marking(logs)):
            self.engine = build_engine(config, lambda _stage, _share: None, pdl=pdl)
            self._stream = torch.cuda.current_stream() if torch.cuda.is_available() else None
        (self._log,) = logs
        self.scheduler = self.engine.core.scheduler

    def serve(
        self, batches: Sequence[Sequence[GenerationRequest]], *, apart: int = 0, chunk: int = 0
    ) -> Served:
        """One batch after the other; in a batch a request every `apart` steps, or all at once.
        chunk: most tokens of a step."""
        served, usual = Served(), self.scheduler.max_num_batched_tokens
        self.scheduler.max_num_batched_tokens = chunk or usual
        with on_stream(self._stream):
            for batch in batches:
                self._drive(list(batch), apart, served)
            log = self._log.cpu()
        self.scheduler.max_num_batched_tokens = usual
        for batch in batches:
            for spec in batch:
                if spec.key < FILLER and spec.n == 1:
                    first = len(spec.prompt_token_ids) + len(spec.resume_token_ids)
                    count = len(served.tokens[spec.key])
                    marks = log[spec.sampling.seed, first : first + count].tolist()
                    served.marks.setdefault(spec.key, []).extend(marks)
        return served

    def _drive(self, waiting: list[GenerationRequest], apart: int, served: Served) -> None:
        turn = 0
        while waiting or self.scheduler.has_requests:
            while waiting and (not apart or turn % apart == 0):
                self.scheduler.submit(waiting.pop(0))
                if apart:
                    break
            for output in self.engine.core.step():
                if output.error_id is not None:
                    raise RuntimeError(f"a step failed ({output.error_id})")
                place = output.key + 1000 * output.index
                served.tokens.setdefault(place, []).extend(output.token_ids)
                served.cached += output.cached_tokens if output.started else 0
                served.preempted = max(served.preempted, output.preemptions)
            turn += 1


def prompt(index: int, length: int) -> tuple[int, ...]:
    """Ids that follow from the index; each third prompt shares a text with others."""
    own = 3 if index % 3 == 0 else index + 4
    return tuple((7919 * own * i * i + 104_729 * i + own) % 300 + 1 for i in range(length))


def requests(count: int = REQUESTS) -> list[GenerationRequest]:
    """Prompts of many lengths, kinds of sampling in turn; key and seed are the same."""
    specs = []
    for index in range(count):
        params = SAMPLINGS[index % len(SAMPLINGS)]
        params = replace(params, seed=index + 1, max_tokens=NEW, ignore_eos=True)
        text = prompt(index, LENGTHS[index % len(LENGTHS)])
        specs.append(GenerationRequest(index + 1, text, params))
    return specs


def fillers(count: int) -> list[GenerationRequest]:
    """Others that stand beside."""
    made = []
    for index in range(count):
        params = SamplingParams(temperature=0.5, seed=FILLER + index, max_tokens=NEW + 40)
        text = prompt(100 + index, 1 + 37 * index % 200)
        made.append(GenerationRequest(FILLER + index, text, replace(params, ignore_eos=True)))
    return made


def launch_of(product: Product, rows: int, model: CausalModel) -> object:
    """How so many rows of a product are launched; of experts, how both of a layer's are."""
    from quire.kernels import support
    from quire.kernels.experts import tiles
    from quire.kernels.linear import exact, fp8_tuning

    data = product.weight.data
    if data.ndim > 2:
        assert model.config.experts is not None
        return tiles.choose(rows, model.config.experts.per_token, len(data), data.dtype)
    n, k = data.shape
    if product.weight.scale is not None:
        return fp8_tuning.exact(n, k, rows, product.silu)
    return exact.choose(n, k, rows, card=support.card_name(model.device))


class Pairs:
    """All pairs of one shape and type, each against the requests served alone."""

    def __init__(self, model: str, dtype: str) -> None:
        self._model, self._dtype = model, dtype
        self.specs = requests()
        self.main = Marked(model, dtype)
        self.alone = self.main.serve([[spec] for spec in self.specs])

    @property
    def digest(self) -> str:
        """Names all tokens and marks of the requests alone."""
        text = json.dumps([sorted(self.alone.tokens.items()), sorted(self.alone.marks.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def launches(self) -> dict[str, dict[str, str]]:
        """What each weight's products are, by buckets of rows: all have been compared."""
        from quire.kernels.linear import exact

        model = self.main.engine.runner._model  # type: ignore[attr-defined]
        return {
            f"{product.module} {list(product.weight.data.shape)}": {
                str(rows): str(launch_of(product, rows, model)) for rows in exact.BUCKETS
            }
            for product in {one.kind: one for one in reversed(model.products())}.values()
        }

    def all(self, parts: Sequence[str] = PARTS) -> Iterator[Comparison]:
        """Every pair in turn; engines are built as they are asked for, one at a time."""
        if "batches" in parts:
            yield from self._batches()
        if "chunks" in parts:
            yield from self._chunks()
        if "resumed" in parts:
            yield self._resumed()
        if "siblings" in parts:
            yield self._siblings()
        del self.main
        if "cache" in parts:
            yield from self._cached()
        if "others" in parts:
            yield self._other("preempted, eager", num_blocks=70, enforce_eager=True)
            plain = {"enforce_eager": True, "overlap": False, "pdl": False}
            yield self._other("eager, not overlapped, without dependent launch", **plain)

    def _compared(
        self, name: str, served: Served, specs: Sequence[GenerationRequest]
    ) -> Comparison:
        result = Comparison(name)
        for spec in specs:
            key = spec.key
            wanted = zip(self.alone.marks[key], self.alone.tokens[key], strict=True)
            found = zip(served.marks[key], served.tokens[key], strict=True)
            result.add(key, list(wanted), list(found))
        return result

    def _batches(self) -> Iterator[Comparison]:
        for size in BATCHES:
            count = min(size, len(self.specs))
            groups = [self.specs[i : i + count] for i in range(0, len(self.specs), count)]
            beside = fillers(size - count)
            served = self.main.serve([[*beside, *group] for group in groups])
            yield self._compared(f"batch of {size}", served, self.specs)
        served = self.main.serve([self.specs], apart=3)
        yield self._compared("one after another, mixed steps", served, self.specs)

    def _chunks(self) -> Iterator[Comparison]:
        for chunk in CHUNKS:
            some = [self.specs[i] for i in (0, 1, 3, 4, 9, 11)]
            few = [replace(s, sampling=replace(s.sampling, max_tokens=24)) for s in some]
            served = self.main.serve([few[:3], few[3:]], chunk=chunk)
            result = Comparison(f"chunks of {chunk}")
            for spec in few:
                key = spec.key
                wanted = list(zip(self.alone.marks[key], self.alone.tokens[key], strict=True))
                found = list(zip(served.marks[key], served.tokens[key], strict=True))
                result.add(key, wanted[:24], found)
            yield result

    def _resumed(self) -> Comparison:
        """From every token of three streams on, the next twelve tokens."""
        result = Comparison("resumed at every token")
        for spec in (self.specs[1], self.specs[3], self.specs[5]):
            tokens, marks = self.alone.tokens[spec.key], self.alone.marks[spec.key]
            for held in range(1, NEW):
                most = min(held + 12, NEW)
                params = replace(spec.sampling, max_tokens=most)
                again = replace(spec, resume_token_ids=tuple(tokens[:held]), sampling=params)
                served = self.main.serve([[again]])
                found = zip(served.marks[spec.key], served.tokens[spec.key], strict=True)
                wanted = zip(marks[held:most], tokens[held:most], strict=True)
                result.add(spec.key, list(wanted), list(found))
        return result

    def _siblings(self) -> Comparison:
        """n = 4: beside others and without; tokens alone are compared."""
        result = Comparison("n = 4")
        several = [replace(spec, n=4) for spec in self.specs[:8]]
        one, other = (
            self.main.serve(batches).tokens
            for batches in ([[spec] for spec in several], [[*fillers(40), *several]])
        )
        for place in one:
            result.add(place, [(0, t) for t in one[place]], [(0, t) for t in other[place]])
        return result

    def _cached(self) -> Iterator[Comparison]:
        engine = Marked(self._model, self._dtype, enable_prefix_caching=True)
        yield self._compared("cache, cold", engine.serve([self.specs]), self.specs)
        served = engine.serve([self.specs])
        again = self._compared("cache, hit", served, self.specs)
        again.proof = f"{served.cached} cached tokens"
        yield again
        cut = [s for s in self.specs if len(s.prompt_token_ids) > 100]
        served = engine.serve([[spec] for spec in cut])  # what they made is cached too
        again = self._compared("cache, hit alone, copied tail", served, cut)
        again.proof = f"{served.cached} cached tokens"
        yield again

    def _other(self, name: str, **options: Any) -> Comparison:
        engine = Marked(self._model, self._dtype, **options)
        served = engine.serve([self.specs])
        result = self._compared(name, served, self.specs)
        result.proof = f"{served.preempted} preemptions at most"
        return result


def another_process(pairs: Pairs, about: dict[str, Any], old: list[dict[str, Any]]) -> Comparison:
    """The requests alone, beside what an earlier process found of them."""
    result = Comparison("another process", proof=pairs.digest)
    found = {r["proof"] for r in old if r["pair"] == result.pair and about.items() <= r.items()}
    if found:
        result.compared = sum(len(tokens) for tokens in pairs.alone.tokens.values())
        result.other_logits = 0 if found == {pairs.digest} else result.compared
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-shape", default="0.6B")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--out", type=Path, help="append the rows to this JSON")
    options = parser.parse_args()
    pairs = Pairs(f"random:{options.model_shape}", options.dtype)
    about = {"workload": "exact", "engine": "quire", "model": options.model_shape}
    about |= {"dtype": options.dtype, "numerics": pairs.main.engine.info.numerics}
    kept = options.out is not None and options.out.exists()
    old = json.loads(options.out.read_text())["rows"] if kept else []
    results = [another_process(pairs, about, old)]
    old.append(about | {"pair": "launches", "launches": pairs.launches(), "commit": commit()})
    for result in pairs.all(options.parts):
        results.append(result)
        print(result, flush=True)
        if options.out:  # a run that is cut leaves what it had
            rows = [about | {"commit": commit()} | vars(r) for r in results]
            write_results(options.out, [*old, *rows])
    columns = ["pair", "tokens", "other logits", "other tokens", "first", "proof"]
    table = [
        [r.pair, r.compared, r.other_logits, r.other_tokens, r.first, r.proof] for r in results
    ]
    print_table(f"exact, {options.model_shape}, {options.dtype}", columns, table)
    faults = sum(r.other_logits + r.other_tokens for r in results)
    print(f"{sum(r.compared for r in results)} tokens compared, {faults} differ")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())

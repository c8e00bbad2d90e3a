"""Trains the tokenizer and the model, and writes the Hugging Face directory.

Invariant: with `--steps` on the CPU the result depends on the arguments alone, bit for bit. With
`--max-minutes` the learning rate follows the clock and a second run gives other bits, equal
scores. A run resumed from its state goes on with the next batch, its momenta rounded to bf16. A run
`--from` a written directory takes its weights and its tokenizer, the tags added if they are not
there, and learns on with fresh momenta.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import export
import torch
import vocabulary
from cells import Maker
from network import Pocket, Shape
from optim import Optimizers
from rows import Batch, Batches, Encoder, Plan
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from score import Scorer
from tokenizers import Tokenizer
from tqdm import tqdm

WARMUP_STEPS = 50
DECAY_SHARE = 0.5
DEV_SEED = 1
SCORES = "scores.json"
STATE_WEIGHTS, STATE_MOMENTA = "state-weights.safetensors", "state-momenta.safetensors"


@dataclass(frozen=True)
class Options:
    """The command line, read once."""

    out: Path
    seed: int
    steps: int | None
    max_minutes: float | None
    device: str
    compute: str
    batch_tokens: int
    curriculum_tokens: float
    muon_rate: float
    adam_rate: float
    workers: int
    compile: bool
    resume: bool
    base: Path | None
    score_cases: int
    probe_minutes: float
    layers: int


class Progress:
    """How far the run is, from 0 to 1, by steps or by the clock, whichever is nearer its end."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.monotonic) -> None:
        self._options, self._clock = options, clock
        self._start = clock()
        self.step = 0

    @property
    def minutes(self) -> float:
        return (self._clock() - self._start) / 60

    @property
    def share(self) -> float:
        shares = [0.0]
        if self._options.steps is not None:
            shares.append(self.step / self._options.steps)
        if self._options.max_minutes is not None:
            shares.append(self.minutes / self._options.max_minutes)
        return max(shares)

    def rate(self) -> float:
        """The learning rate's scale: warm-up, a plateau, then a line to (almost) zero."""
        warm = min(1.0, (self.step + 1) / WARMUP_STEPS)
        return max(0.01, warm * min(1.0, (1.0 - self.share) / DECAY_SHARE))


class Trainer:
    """A model, its optimizers and their state on disk."""

    def __init__(self, options: Options) -> None:
        self.options = options
        torch.manual_seed(options.seed)
        shape = Shape(num_hidden_layers=options.layers)
        compute = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.compute]
        self.model = Pocket(shape, compute).to(options.device)
        if options.base is not None:
            _begin_with(self.model, options.base)
        self.optimizers = Optimizers(self.model, options.muon_rate, options.adam_rate)
        self.next_batch = 0
        if options.resume:
            self._load()
        if options.compile:
            # A layer that does not compile runs as it is.
            torch._dynamo.config.suppress_errors = True
            for layer in self.model.model.layers:
                layer.compile(dynamic=False)

    def learn(self, batch: Batch, scale: float) -> torch.Tensor:
        """One step; the loss stays on the device."""
        device = self.options.device
        tokens = torch.from_numpy(batch.tokens.astype("int64")).to(device, non_blocking=True)
        targets = torch.from_numpy(batch.targets).to(device, non_blocking=True)
        loss = self.model.loss(tokens, targets)
        loss.backward()
        self.optimizers.step(scale)
        self.next_batch = batch.index + 1
        return loss.detach()

    def save(self) -> None:
        """The state, in two files of less than 16 MiB each."""
        weights = {n: p.detach().cpu().clone() for n, p in self.model.named_parameters()}
        save_file(weights, self.options.out / STATE_WEIGHTS)
        momenta = {
            name: tensor.cpu().to(torch.bfloat16 if tensor.dim() else torch.float32).clone()
            for name, tensor in self.optimizers.tensors().items()
        }
        metadata = {"next_batch": str(self.next_batch)}
        save_file(momenta, self.options.out / STATE_MOMENTA, metadata=metadata)

    @torch.no_grad()
    def _load(self) -> None:
        weights = load_file(self.options.out / STATE_WEIGHTS)
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])
        saved = load_file(self.options.out / STATE_MOMENTA)
        for name, tensor in self.optimizers.tensors().items():
            tensor.copy_(saved[name])
        with safe_open(self.options.out / STATE_MOMENTA, "pt") as file:
            self.next_batch = int(file.metadata()["next_batch"])


@torch.no_grad()
def _begin_with(model: Pocket, base: Path) -> None:
    """The weights of a written directory. Embeddings of tags that it lacks begin at the mean."""
    weights = load_file(base / "model.safetensors")
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    if any(tokenizer.token_to_id(tag) is None for tag in vocabulary.TAGS):
        rows = model.model.embed_tokens.weight
        new = rows[len(rows) - len(vocabulary.TAGS) :]
        new.copy_(rows.mean(0) + 0.02 * torch.randn(new.shape).to(new.device))


def _tokenizer(options: Options) -> Tokenizer:
    if options.base is None:
        return vocabulary.train(options.seed)
    found = Tokenizer.from_file(str(options.base / "tokenizer.json"))
    whole = all(found.token_to_id(tag) is not None for tag in vocabulary.TAGS)
    return found if whole else vocabulary.with_tags(found)


class Run:
    """One training run: batches in, progress lines, probes and checkpoints out."""

    def __init__(self, trainer: Trainer, encoder: Encoder, options: Options) -> None:
        self.trainer, self.encoder, self.options = trainer, encoder, options
        cells = Maker(encoder.tokenizer).cells()
        self.probe = Scorer(encoder, cells, DEV_SEED, 16 if options.probe_minutes else 0)
        self.waited = 0.0
        self.seen = 0

    def go(self, batches: Iterator[Batch]) -> None:
        """Learns until the steps or the minutes are spent."""
        progress = Progress(self.options)
        bar = tqdm(total=self.options.steps, mininterval=10.0, ascii=True)
        line_due, probe_due = 0.15, self.options.probe_minutes
        while progress.share < 1.0:
            asked = time.monotonic()
            batch = next(batches)
            self.waited += time.monotonic() - asked
            loss = self.trainer.learn(batch, progress.rate())
            progress.step += 1
            self.seen += batch.tokens.size
            bar.update()
            if progress.step % 20 == 0 and progress.minutes > line_due:
                bar.write(self._line(progress, batch, float(loss)))
                line_due = progress.minutes + 0.15
            if self.options.probe_minutes and progress.minutes > probe_due:
                bar.write(self._probe_line())
                self.trainer.save()
                probe_due = progress.minutes + self.options.probe_minutes
        bar.close()

    def _line(self, progress: Progress, batch: Batch, loss: float) -> str:
        speed = self.seen / progress.minutes / 60e3
        total = self.trainer.next_batch * self.options.batch_tokens / 1e6
        return (
            f"step {progress.step} {progress.share:.1%} row {batch.tokens.shape[1]} "
            f"loss {loss:.4f} {speed:.0f} ktok/s total {total:.0f} Mtok "
            f"waited for data {self.waited:.1f} s"
        )

    def _probe_line(self) -> str:
        found = self.probe.scores(self.trainer.model)
        return "probe " + " | ".join(
            f"{s.cell.name} {s.exact:.0%} ({s.tokens:.1%})"
            for s in found
            if s.cell.floor is not None
        )


def _report(trainer: Trainer, encoder: Encoder, count: int) -> None:
    scorer = Scorer(encoder, Maker(encoder.tokenizer).cells(), DEV_SEED, count)
    found = scorer.scores(trainer.model)
    shares = {s.cell.name: {"exact": s.exact, "tokens": s.tokens} for s in found}
    text = json.dumps({"cases": count, "cells": shares}, indent=2) + "\n"
    (trainer.options.out / SCORES).write_text(text, encoding="utf-8")
    for score in found:
        floor = "" if score.cell.floor is None else f" (floor {score.cell.floor:.0%})"
        print(f"{score.cell.name:28s} exact {score.exact:6.1%} tokens {score.tokens:7.2%}{floor}")


def _device_name(options: Options) -> str:
    return torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device


def run(options: Options) -> None:
    """One training run from nothing (or from its state) to the directory."""
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "tokenizer.json"
    if not options.resume:
        vocabulary.save(_tokenizer(options), options.out)
    encoder = Encoder(Tokenizer.from_file(str(path)))
    torch.use_deterministic_algorithms(not options.device.startswith("cuda"))
    trainer = Trainer(options)
    plan = Plan(options.seed, options.batch_tokens, options.curriculum_tokens)
    batches = Batches(path, plan, trainer.next_batch, options.workers)
    try:
        Run(trainer, encoder, options).go(iter(batches))
    finally:
        batches.close()
    trainer.save()
    steps = f"{trainer.next_batch} steps of {options.batch_tokens} tokens"
    how = f"seed {options.seed}, {steps}, torch {torch.__version__} on {_device_name(options)}"
    if options.base is not None:
        before = json.loads((options.base / "config.json").read_text(encoding="utf-8"))
        how = f"{before.get('training') or 'another model'}; from there {how}"
    export.write_model(trainer.model, encoder, options.out, how)
    if options.score_cases:
        _report(trainer, encoder, options.score_cases)


def _options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the directory to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="stop after this many steps")
    parser.add_argument("--max-minutes", type=float, help="stop after this long")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--batch-tokens", type=int, default=65536)
    parser.add_argument("--curriculum-tokens", type=float, default=60e6)
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=0.003)
    parser.add_argument("--workers", type=int, default=0, help="processes that write batches")
    parser.add_argument("--compile", action="store_true", help="torch.compile each layer")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    parser.add_argument("--from", dest="base", type=Path, help="begin with this directory's model")
    parser.add_argument("--score-cases", type=int, default=200, help="a cell; 0: no scores")
    parser.add_argument("--probe-minutes", type=float, default=0.0, help="0: never")
    parser.add_argument("--layers", type=int, default=Shape.num_hidden_layers)
    options = Options(**vars(parser.parse_args()))
    if options.steps is None and options.max_minutes is None:
        parser.error("one of --steps and --max-minutes is needed")
    if options.resume and options.base is not None:
        parser.error("--resume goes on from --out, --from begins anew: only one of them")
    return options


def main() -> None:
    """Reads the command line and trains."""
    options = _options()
    print(json.dumps({k: str(v) for k, v in vars(options).items()}), flush=True)
    run(options)


if __name__ == "__main__":
    main()

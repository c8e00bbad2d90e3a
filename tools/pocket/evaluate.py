"""The scored evaluation of a trained directory, greedy, with a fixed seed.

Invariant: a case counts only if the decoded answer equals the expected text and the model ended it
itself. Every case is of the held-out class (see `cells`); intervals are Wilson's at 95%.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import agent
import corpus
from answerers import ENGINES, Engine, Transformers
from cells import CONTEXT, Cell, Maker
from corpus import Message
from draw import Draw
from rows import Encoder
from stories import story_turn
from tokenizers import Tokenizer

SEED = 2026
EXTRA_TOKENS = 200
"""An answer may run this much longer than expected, as far as the context reaches, before it counts
as not stopping."""
STORIES = 100
STORY_TOKENS = 300
STOP_FLOOR = 0.99
STORY_FLOOR = 1.0
AGENT_TOKENS = 160
AGENT_FLOOR = 0.95


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927)."""
    z = 1.959964
    share = right / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def repeats_thrice(ids: Sequence[int], size: int = 8) -> bool:
    """True when some `size` tokens stand three times running."""
    return any(
        ids[at : at + size] == ids[at + size : at + 2 * size] == ids[at + 2 * size : at + 3 * size]
        for at in range(len(ids) - 3 * size + 1)
    )


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    cell: str
    right: int
    count: int
    floor: float | None

    @property
    def share(self) -> float:
        return self.right / self.count

    @property
    def passed(self) -> bool | None:
        return None if self.floor is None else self.share >= self.floor

    def markdown(self) -> str:
        low, high = wilson(self.right, self.count)
        floor = "–" if self.floor is None else f"{self.floor:.0%}"
        verdict = {None: "–", True: "yes", False: "**no**"}[self.passed]
        return (
            f"| {self.cell} | {self.right}/{self.count} | {self.share:.1%} "
            f"| {low:.1%} – {high:.1%} | {floor} | {verdict} |"
        )


HEADER = "| cell | right | share | 95% interval | floor | reached |\n|---|---|---|---|---|---|"


class Evaluation:
    """Asks one engine every case once and keeps the ids of each answer."""

    def __init__(self, engine: Engine, encoder: Encoder, say: Callable[[str], None]) -> None:
        self.engine, self.encoder, self.say = engine, encoder, say
        self.answers: dict[str, list[list[int]]] = {}
        self.prompts: dict[str, list[list[int]]] = {}
        self.results: list[Result] = []
        self.stopped = self.asked = 0

    def cell(self, cell: Cell, seed: int, count: int) -> Result:
        """The exact share of one cell."""
        encode = self.encoder.tokenizer.encode
        cases = list(cell.cases(seed, count))
        prompts = [encode(case.text).ids for case in cases]
        wanted = [len(encode(case.answer).ids) + 1 + EXTRA_TOKENS for case in cases]
        limits = [min(w, CONTEXT - len(p)) for w, p in zip(wanted, prompts, strict=True)]
        answers = self.engine.generate(prompts, limits)
        self.prompts[cell.name], self.answers[cell.name] = prompts, answers
        right = sum(self._right(ids, c.answer) for ids, c in zip(answers, cases, strict=True))
        self.stopped += sum(self._ended(ids) for ids in answers)
        self.asked += count
        result = self._told(Result(cell.name, right, count, cell.floor))
        self.results.append(result)
        return result

    def stopping(self) -> Result:
        """How many answers of all cells so far the model ended itself."""
        return self._told(Result("stops by itself", self.stopped, self.asked, STOP_FLOOR))

    def stories(self, seed: int, count: int = STORIES) -> Result:
        """Sampled stories (temperature 1) without an 8-gram three times running."""
        questions = [story_turn(Draw(seed, "stories", at))[0] for at in range(count)]
        texts = [corpus.render([Message("user", text)], ask=True) for text in questions]
        prompts = [self.encoder.tokenizer.encode(text).ids for text in texts]
        answers = self.engine.generate(prompts, [STORY_TOKENS] * count, temperature=1.0)
        good = sum(not repeats_thrice(ids) for ids in answers)
        return self._told(Result("stories without a loop", good, count, STORY_FLOOR))

    def agent(self) -> Result:
        """The fixed tasks of an agent loop with two tools, unconstrained."""
        right = agent.completed(self._say)
        return self._told(Result("agent tasks", sum(right), len(right), AGENT_FLOOR))

    def _say(self, texts: Sequence[str]) -> list[str]:
        """Greedy answers; one that did not end by itself is no answer."""
        prompts = [self.encoder.tokenizer.encode(text).ids for text in texts]
        found = self.engine.generate(prompts, [AGENT_TOKENS] * len(prompts))
        decode = self.encoder.tokenizer.decode
        return [
            decode(ids[:-1], skip_special_tokens=False) if self._ended(ids) else "" for ids in found
        ]

    def _ended(self, ids: list[int]) -> bool:
        return bool(ids) and ids[-1] in (self.encoder.im_end, self.encoder.pad)

    def _right(self, ids: list[int], answer: str) -> bool:
        text = self.encoder.tokenizer.decode(ids[:-1], skip_special_tokens=False)
        return self._ended(ids) and text == answer

    def _told(self, result: Result) -> Result:
        self.say(result.markdown())
        return result


@dataclass
class Comparison:
    """Answers of two engines: how many differ, and why."""

    answers: int = 0
    ties: int = 0
    unexplained: int = 0


def compare(one: Evaluation, other: Evaluation, gap: Callable[[list[int]], float]) -> Comparison:
    """Counts differing answers; a tie is a first difference where the two best logits lie within
    1e-4 (`gap` gives their distance after the given ids)."""
    found = Comparison()
    for name, answers in one.answers.items():
        # Of the first cases of a cell, where one was asked fewer.
        pairs = zip(one.prompts[name], answers, other.answers[name], strict=False)
        for prompt, ours, theirs in pairs:
            found.answers += 1
            if ours == theirs:
                continue
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            if gap(prompt + ours[:at]) <= 1e-4:
                found.ties += 1
            else:
                found.unexplained += 1
    return found


def _evaluate(
    name: str, directory: Path, encoder: Encoder, args: argparse.Namespace, cases: int
) -> tuple[Evaluation, list[Result]]:
    print(f"\n{name}\n{HEADER}", flush=True)
    with ENGINES[name](directory) as engine:
        evaluation = Evaluation(engine, encoder, lambda line: print(line, flush=True))
        if args.agent_only:
            return evaluation, [evaluation.agent()]
        cells = Maker(encoder.tokenizer).cells()
        chosen = [c for c in cells if args.only is None or args.only in c.name]
        results = [evaluation.cell(cell, args.seed, cases) for cell in chosen]
        results.append(evaluation.stopping())
        if args.only is None and name == args.engine:
            results.append(evaluation.stories(args.seed))
            results.append(evaluation.agent())
    return evaluation, results


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Evaluates a directory with one engine, or with two and compares them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the trained directory")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="quire")
    parser.add_argument("--against", choices=sorted(ENGINES), help="a second engine to compare")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--cases", type=int, default=200, help="a cell")
    parser.add_argument("--against-cases", type=int, help="of these, for the second; default: all")
    parser.add_argument("--only", help="cells whose name contains this")
    parser.add_argument("--agent-only", action="store_true", help="only the agent's tasks")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    args = parser.parse_args()
    if args.cases < 1:
        parser.error(f"--cases must be at least 1, not {args.cases}")
    start = time.monotonic()
    encoder = Encoder(Tokenizer.from_file(str(args.model / "tokenizer.json")))
    evaluation, results = _evaluate(args.engine, args.model, encoder, args, args.cases)
    report: dict[str, object] = {
        "engine": args.engine,
        "sha256": hashlib.sha256((args.model / "model.safetensors").read_bytes()).hexdigest(),
        "seed": args.seed,
        "cells": [{**asdict(r), "interval": wilson(r.right, r.count)} for r in results],
    }
    if args.against is not None:
        asked = min(args.cases, args.against_cases or args.cases)
        other, _ = _evaluate(args.against, args.model, encoder, args, asked)
        with Transformers(args.model) as judge:
            counted = compare(evaluation, other, judge.gap)
        report["against"] = {"engine": args.against, "cases": asked, **asdict(counted)}
        print(f"\n{args.engine} and {args.against}: {counted}")
    report["minutes"] = round((time.monotonic() - start) / 60, 1)
    if args.json is not None:
        _write(args.json, report)
    if args.markdown is not None:
        lines = "\n".join(result.markdown() for result in results)
        args.markdown.write_text(f"{HEADER}\n{lines}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

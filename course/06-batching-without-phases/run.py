"""Chapter 6's figures: one at a time, in closed batches, and joined as they come; then chunks."""

from collections.abc import Sequence
from typing import Any

import lab
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from mini.engine import Engine
from mini.scheduler import Request

MAX_TOKENS = 120
QUESTIONS = (
    "Count from 6 to 30.",
    "What is 20 + 22?",
    "Tell me a story.",
    "Hello!",
    "What is a block?",
    "Count from 1 to 9.",
    "What is 7 + 8?",
    "Tell me a short story about a crow.",
)
LETTER = " ".join(f"Line {i} of a long letter." for i in range(40))
AT_ONCE = 4
Lines = list[list[int]]  # of each request, of each step: tokens it had


class Watch:
    """An engine that notes, of each request and step, how many tokens it had."""

    def __init__(self, pocket: lab.Pocket, requests: Sequence[Request], **options: Any) -> None:
        self.engine = Engine(pocket.model, policy="none", **options)
        self.requests = requests
        self.lines: Lines = [[] for _ in requests]

    def serve(self, some: Sequence[Request]) -> None:
        """Submit these and run until nobody is left."""
        for request in some:
            self.engine.scheduler.submit(request)
        while self.step():
            pass

    def step(self) -> bool:
        before = [len(request.output) for request in self.requests]
        computed = [request.computed for request in self.requests]
        if not self.engine.step():
            return False
        for line, request, said, had in zip(
            self.lines, self.requests, before, computed, strict=True
        ):
            moved = request.computed - had
            line.append(moved if moved > 0 else int(len(request.output) > said))
        return True


def batches(pocket: lab.Pocket, size: int | None) -> Watch:
    """All questions in closed batches of a size, or (None) joined as places become free."""
    requests = [Request(tuple(pocket.ask(question)), MAX_TOKENS) for question in QUESTIONS]
    watch = Watch(pocket, requests, max_running=size or AT_ONCE)
    groups = [requests[i : i + size] for i in range(0, len(requests), size)] if size else [requests]
    for group in groups:
        watch.serve(group)
    return watch


def letter(pocket: lab.Pocket, budget: int) -> dict[str, Any]:
    """Three talk, and a long letter comes in: the largest step, and when the letter is read."""
    requests = [Request(tuple(pocket.ask(QUESTIONS[i])), 60) for i in (0, 2, 7)]
    late = Request(tuple(pocket.ask(LETTER)), 8)
    watch = Watch(pocket, [*requests, late], budget=budget)
    for request in requests:
        watch.engine.scheduler.submit(request)
    for _ in range(10):
        watch.step()
    watch.engine.scheduler.submit(late)
    while watch.step():
        pass
    read = next(step for step, count in enumerate(watch.lines[3]) if count == 1)
    return {
        "budget": budget,
        "letter": len(late.prompt),
        "largest": max(sum(column) for column in zip(*watch.lines, strict=True)),
        "steps_to_read": read - 10,
    }


def crowded(pocket: lab.Pocket, expected: Sequence[Request]) -> dict[str, int]:
    """The questions on a pool that is too small for all: the same answers, some begun twice."""
    engine = Engine(pocket.model, num_blocks=20, block_size=8)
    done = engine.generate([request.prompt for request in expected], MAX_TOKENS)
    assert [request.output for request in done] == [request.output for request in expected]
    return {"preemptions": sum(request.preemptions for request in done)}


def row(name: str, lines: Lines) -> list[Any]:
    """A line of the table: steps, and rows a step."""
    steps = len(lines[0])
    rows = sum(count > 0 for line in lines for count in line)
    return [name, steps, f"{rows / steps:.1f}"]


def figures() -> dict[str, Any]:
    """Nothing here is a time: a step reads all weights once, however many rows it has."""
    pocket = lab.pocket()
    alone, closed, joined = (batches(pocket, size) for size in (1, AT_ONCE, None))
    return {
        "table": [
            ["how", "steps", "rows a step"],
            row("one at a time", alone.lines),
            row(f"closed batches of {AT_ONCE}", closed.lines),
            row(f"joined, {AT_ONCE} at once", joined.lines),
        ],
        "closed": closed.lines,
        "joined": joined.lines,
        "letters": [letter(pocket, budget) for budget in (1024, 64, 16)],
        "crowded": crowded(pocket, alone.requests),
    }


def draw(found: dict[str, Any]) -> Figure:
    """Who had tokens in which step: closed batches above, joined below."""
    figure, both = plt.subplots(2, 1, figsize=(10, 4.6), sharex=True, layout="constrained")
    for axes, key, title in (
        (both[0], "closed", "closed batches: a place stays empty until the last one is done"),
        (both[1], "joined", "joined as places become free"),
    ):
        for y, line in enumerate(found[key]):
            for colour, wanted in (("#d9480f", True), ("#74c0fc", False)):
                spans = [(x, 1) for x, n in enumerate(line) if n and (n > 1) is wanted]
                axes.broken_barh(spans, (y + 0.1, 0.8), color=colour)
        axes.set(ylim=(len(found[key]), 0), yticks=[], title=title)
        axes.set_ylabel("requests")
    both[1].set_xlabel("step (red: a prompt, blue: one token)")
    return figure

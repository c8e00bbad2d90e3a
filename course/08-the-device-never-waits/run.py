"""Chapter 8's figures: a clock of ticks, on which a host waits for a device, and does not."""

from dataclasses import dataclass
from typing import Any

import chapters
import lab
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

STEPS = 100
HOST, LAUNCH = 3, 1  # ticks: to plan a step and take its tokens in, and to launch a kernel's worth
CASES = (("a large model", 12), ("a small model", 5), ("a tiny model", 2))  # ticks a step
LAYERS, A_LAYER, AROUND = 28, 5, 6  # launches of a step of Qwen3-0.6B
QUESTIONS = ("What is 20 + 22?", "Tell me a story.", "Count from 6 to 12.")


@dataclass(frozen=True)
class Span:
    """Something that was done from a tick to another one."""

    who: str
    step: int
    begin: int
    end: int


def plain(device: int, steps: int) -> list[Span]:
    """Plan, launch, wait; and again."""
    spans, now = [], 0
    for step in range(steps):
        spans.append(Span("host", step, now, now + HOST + LAUNCH))
        now += HOST + LAUNCH
        spans.append(Span("device", step, now, now + device))
        now += device
    return spans


def ahead(device: int, steps: int) -> list[Span]:
    """Launch a step before the one before it is waited for."""
    spans, host, ready, ends = [], 0, 0, []
    for step in range(steps):
        if step >= 2:
            host = max(host, ends[step - 2])  # what was launched two before has to be taken in
        spans.append(Span("host", step, host, host + HOST + LAUNCH))
        host += HOST + LAUNCH
        begin = max(host, ready)
        ready = begin + device
        ends.append(ready)
        spans.append(Span("device", step, begin, ready))
    return spans


def figures() -> dict[str, Any]:
    """Counts of ticks; and of tokens, on a real run with a step in flight."""
    rows = []
    for name, device in CASES:
        slow, fast = plain(device, STEPS), ahead(device, STEPS)
        busy = [round(100 * STEPS * device / spans[-1].end) for spans in (slow, fast)]
        rows.append([name, device, slow[-1].end, fast[-1].end, f"{busy[0]}%", f"{busy[1]}%"])
    pocket = lab.pocket()
    run_ahead = chapters.load(lab.COURSE / "08-the-device-never-waits" / "ahead.py")
    prompts = [pocket.ask(question) for question in QUESTIONS]
    answers, wasted = run_ahead.generate_ahead(pocket.model, prompts, 100)
    return {
        "table": [
            ["model", "ticks a step", "waiting", "a step ahead", "busy, waiting", "busy, ahead"],
            *rows,
        ],
        "tokens": sum(map(len, answers)),
        "wasted": wasted,
        "launches": LAYERS * A_LAYER + AROUND,
    }


def draw(_found: dict[str, Any]) -> Figure:
    """Six steps of the small model, both ways."""
    figure, both = plt.subplots(2, 1, figsize=(10, 3.6), sharex=True, layout="constrained")
    for axes, work, title in (
        (both[0], plain, "the host waits for each step"),
        (both[1], ahead, "the host is a step ahead"),
    ):
        for span in work(CASES[1][1], 6):
            y = 0 if span.who == "device" else 1
            colour = "#2b8a3e" if y == 0 else "#74c0fc"
            axes.broken_barh([(span.begin, span.end - span.begin)], (y + 0.1, 0.8), color=colour,
                             edgecolor="white")  # fmt: skip
            middle = (span.begin + span.end) / 2
            axes.text(middle, y + 0.5, span.step, ha="center", va="center")
        axes.set(yticks=[0.5, 1.5], yticklabels=["device", "host"], title=title)
    both[1].set_xlabel("tick (numbers: steps)")
    return figure

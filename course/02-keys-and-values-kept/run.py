"""Chapter 2's figures: three answers with and without keys and values kept, and single steps."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import lab
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from mini.memory import Kept, generate, generate_forgetful
from mini.model import NoMemory

QUESTIONS = ("What is 20 + 22?", "Tell me a story.", "Count from 6 to 30.")
LENGTHS = (16, 32, 64, 128, 256, 384, 512)
Result = TypeVar("Result")


def timed(work: Callable[[], Result], tries: int) -> tuple[Result, float]:
    """What came of it, and seconds of processor time, which other programs disturb least: the least
    of some tries."""
    least = float("inf")
    for _ in range(tries):
        began = time.process_time()
        result = work()
        least = min(least, time.process_time() - began)
    return result, least


def answer(pocket: lab.Pocket, question: str) -> dict[str, Any]:
    """One question both ways: tokens, rows that went through the model, and seconds."""
    prompt = pocket.ask(question)
    model = pocket.model
    said, slow = timed(lambda: generate_forgetful(model, prompt, 200), 1)
    same, fast = timed(lambda: generate(model, prompt, 200), 2)
    assert said == same
    begin, count = len(prompt), len(said)
    return {
        "prompt": begin,
        "answer": count,
        "rows_again": sum(range(begin, begin + count)),
        "rows_kept": begin + count - 1,
        "seconds": [round(slow, 3), round(fast, 3)],
    }


def step(pocket: lab.Pocket, length: int) -> tuple[float, float]:
    """Milliseconds for the one token behind `length` tokens: all again, or the last one alone."""
    tokens = (pocket.ask("Tell me a story.") * length)[:length]
    places = list(range(length))
    model = pocket.model
    _, slow = timed(lambda: model.logits(tokens, places, NoMemory(), [-1]), 3)
    memory = Kept(model, length)
    model.logits(tokens[:-1], places[:-1], memory, [-1])
    memory.advance(length - 1)
    _, fast = timed(lambda: model.logits(tokens[-1:], places[-1:], memory, [-1]), 3)
    return round(1000 * slow, 2), round(1000 * fast, 2)


def figures() -> dict[str, Any]:
    """Counts of rows; and times, which `measured` names."""
    pocket = lab.pocket()
    step(pocket, LENGTHS[0])  # the first one of a process is slow
    answers = {question: answer(pocket, question) for question in QUESTIONS}
    rows = []
    for question, one in answers.items():
        slow, fast = one.pop("seconds")
        again, kept = f"{one['rows_again']:,}", f"{one['rows_kept']:,}"
        rows.append([question, one["answer"], again, kept, slow, fast, f"{slow / fast:.1f}"])
    return {
        "table": [
            ["question", "tokens", "rows again", "rows kept", "s again", "s kept", "times"],
            *rows,
        ],
        "answers": answers,
        "steps": [[length, *step(pocket, length)] for length in LENGTHS],
        "bytes_per_token": pocket.model.config.kv_bytes_per_token,
        "measured": ["table", "steps"],
    }


def draw(found: dict[str, Any]) -> Figure:
    """Left: a single token, by the length of what is before it. Right: rows in all."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    lengths, slow, fast = zip(*found["steps"], strict=True)
    left.plot(lengths, slow, marker="o", color="#d9480f", label="the whole text again")
    left.plot(lengths, fast, marker="o", color="#0b6e99", label="keys and values kept")
    left.set(xlabel="tokens before it", ylabel="ms", title="The time of one token")
    left.set_ylim(0)
    left.legend()
    answers = found["answers"]
    names = [f"{question}\n{one['answer']} tokens" for question, one in answers.items()]
    for shift, key, colour in ((-0.2, "rows_again", "#d9480f"), (0.2, "rows_kept", "#0b6e99")):
        places = [i + shift for i in range(len(names))]
        bars = right.bar(places, [one[key] for one in answers.values()], 0.4, color=colour)
        right.bar_label(bars, fmt="{:,.0f}")
    right.set_xticks(range(len(names)), names)
    right.set_title("Rows that went through the model for an answer")
    return figure

"""Chapter 12's figures: the first word of a story by temperature, and stories drawn in company."""

from collections.abc import Sequence
from typing import Any

import lab
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from mini.chance import Chance, keep, noise
from mini.engine import Engine
from mini.memory import NoMemory
from mini.scheduler import Request

QUESTION = "Tell me a story."
TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)
TOP_P = 0.9
STORIES, LENGTH, DRAWS = 6, 20, 1000


def first_scores(pocket: lab.Pocket) -> torch.Tensor:
    """What the model has for the first token of its story: [V]."""
    prompt = pocket.ask(QUESTION)
    return pocket.model.logits(prompt, list(range(len(prompt))), NoMemory(), [-1])[0]


def chances(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """[V] -> [V]. Of temperature 0 the best token has all."""
    if temperature == 0:
        return torch.eye(len(logits))[logits.argmax()]
    return (logits / temperature).softmax(0)


class OneGenerator:
    """What chance must not be: one generator, of which whoever comes next takes the next number."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def draw(self, logits: torch.Tensor, place: int) -> int:
        del place
        return int(torch.multinomial(logits.softmax(0), 1, generator=self._generator))


def stories(pocket: lab.Pocket, chances: Sequence[Any], **engine: Any) -> list[list[int]]:
    """The same question, each time with a chance of its own, in one engine."""
    prompt = tuple(pocket.ask(QUESTION))
    running = Engine(pocket.model, **engine)
    told = [Request(prompt, LENGTH, chance=chance) for chance in chances]
    for request in told:
        running.scheduler.submit(request)
    while running.step():
        pass
    return [request.output for request in told]


def in_company(pocket: lab.Pocket) -> dict[str, int]:
    """How many of the stories are others when they are told together, and not one by one."""
    own = [Chance(1.0, seed=seed) for seed in range(STORIES)]
    alone = stories(pocket, own, max_running=1)
    shared = [[OneGenerator()] * STORIES for _ in range(2)]
    return {
        "one generator": changed(
            stories(pocket, shared[0], max_running=1), stories(pocket, shared[1])
        ),
        "seed and place": changed(alone, stories(pocket, own)),
        "preempted": changed(alone, stories(pocket, own, num_blocks=8, block_size=8)),
    }


def changed(one: list[list[int]], other: list[list[int]]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def figures() -> dict[str, Any]:
    """By temperature: the three openings, all others, and what top-p leaves."""
    pocket = lab.pocket()
    logits = first_scores(pocket)
    named = logits.topk(3).indices.tolist()
    head = ["temperature", *(f"`{pocket.word(token)}`" for token in named), "all others"]
    rows, bars = [], {}
    for temperature in TEMPERATURES:
        each = chances(logits, temperature)
        shares = [float(each[token]) for token in named]
        shares.append(1 - sum(shares))
        bars[str(temperature)] = [round(share, 4) for share in shares]
        left = 1
        if temperature:
            left = int((keep(logits / temperature, 0, TOP_P) > -torch.inf).sum())
        rows.append([temperature, *(f"{100 * s:.0f}%" for s in shares), left])
    drawn = torch.stack([noise(1, place, len(logits)) for place in range(DRAWS)])
    won = torch.bincount((logits + drawn).argmax(1), minlength=len(logits)) / DRAWS
    twelve = logits.topk(12).indices
    return {
        "table": [[*head, f"left by top-p {TOP_P}"], *rows],
        "bars": bars,
        "names": [cell.strip("`") for cell in head[1:]],
        "changed": in_company(pocket),
        "expected": [round(float(x), 3) for x in logits.softmax(0)[twelve]],
        "won": [round(float(x), 3) for x in won[twelve]],
    }


def draw(found: dict[str, Any]) -> Figure:
    """Left: the first word's chances by temperature. Right: how often noise lets each token win."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    bottom = [0.0] * len(found["bars"])
    for index, (name, colour) in enumerate(
        zip(found["names"], ("#0b6e99", "#2f9e44", "#f08c00", "#ced4da"), strict=True)
    ):
        shares = [each[index] for each in found["bars"].values()]
        left.bar(list(found["bars"]), shares, 0.7, bottom=bottom, color=colour, label=name)
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    left.set(xlabel="temperature", ylabel="chance", title="The first word of a story")
    left.legend(loc="upper right", framealpha=1)
    places = range(len(found["won"]))
    right.bar(places, found["won"], 0.7, color="#0b6e99", label=f"won, of {DRAWS:,} draws")
    right.plot(places, found["expected"], "_", color="#d9480f", ms=18, mew=2, label="softmax")
    right.set(xlabel="the twelve likeliest tokens", xticks=[], title="Noise, and then the largest")
    right.legend()
    return figure

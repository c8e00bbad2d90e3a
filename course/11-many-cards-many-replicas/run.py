"""Chapter 11's figures: a model shared out over ranks, and texts shared out over replicas."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import lab
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from mini.layers import swiglu
from mini.prefix import RememberingPool
from torch import Tensor

RANKS = (1, 2, 4)
REPLICAS, BLOCK, BLOCKS = 4, 16, 96


def shares(weights: dict[str, Tensor], ranks: int) -> int:
    """Numbers that one rank holds: its part of every matrix of a layer, and all else whole."""
    split = [w.numel() for name, w in weights.items() if "proj" in name]
    whole = sum(w.numel() for w in weights.values()) - sum(split)
    return whole + sum(split) // ranks


def partials(weights: dict[str, Tensor], x: Tensor, ranks: int) -> list[Tensor]:
    """What each rank's share of layer 0's second half gives: summed, they are the whole."""
    name = "model.layers.0.mlp.{}_proj.weight"
    gate, up, down = (weights[name.format(part)] for part in ("gate", "up", "down"))
    parts = zip(gate.chunk(ranks), up.chunk(ranks), down.chunk(ranks, dim=1), strict=True)
    return [swiglu(x, *part) for part in parts]


def texts(pocket: lab.Pocket) -> list[list[int]]:
    """Fifteen chats of five turns, mixed: each turn begins with all that was said before."""
    turns = [f"Note {i}: the fox number {i} is red." for i in range(5)]
    said: dict[int, list[str]] = {chat: [] for chat in range(15)}
    visits = []
    for turn in turns:
        for chat in said:
            said[chat] += [f"Chat {chat}. {turn} " * 2, "Noted."]
            visits.append(pocket.ask(*said[chat][:-1]))
    return visits


def by_beginning(beginning: int, replicas: Sequence[int]) -> int:
    """The replica that scores best for this beginning: each pair of the two has a fixed score."""

    def score(replica: int) -> bytes:
        return hashlib.sha256(f"{beginning} {replica}".encode()).digest()

    return max(replicas, key=score)


def found(visits: list[list[int]], choose: str) -> float:
    """The share of all tokens that replicas find in pools of their own."""
    pools = [RememberingPool(BLOCKS, BLOCK) for _ in range(REPLICAS)]
    hits = total = 0
    for number, tokens in enumerate(visits):
        place = number % REPLICAS
        if choose == "beginning":
            place = by_beginning(hash(tuple(tokens[:BLOCK])), range(REPLICAS))
        pool, table = pools[place], list[int]()
        pool.share(table, pool.find(tokens))
        hits, total = hits + len(table) * BLOCK, total + len(tokens)
        pool.grow(table, len(tokens))
        pool.remember(table, tokens)
        pool.give_back(table)
    return hits / total


def moved(choose: Callable[[int], tuple[int, int]]) -> float:
    """The share of 1,000 beginnings that go elsewhere once a replica is lost, of those that the
    lost one did not have."""
    pairs = [choose(beginning) for beginning in range(1000)]
    others = [(before, after) for before, after in pairs if before != REPLICAS - 1]
    return sum(before != after for before, after in others) / len(others)


def figures() -> dict[str, Any]:
    """Counts; nothing here is a time."""
    pocket = lab.pocket()
    weights = pocket.model.weights
    x = torch.randn(3, pocket.model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    whole = partials(weights, x, 1)[0]
    rows = []
    for ranks in RANKS:
        parts = partials(weights, x, ranks)
        assert torch.allclose(sum(parts[1:], parts[0]), whole, atol=1e-4)
        held = shares(weights, ranks)
        sums = 0 if ranks == 1 else 2 * pocket.model.config.num_layers
        rows.append([ranks, f"{held:,}", sums, f"{sums * x.shape[1] * 4:,}"])
    visits = texts(pocket)
    all_of, fewer = range(REPLICAS), range(REPLICAS - 1)
    return {
        "table": [["ranks", "numbers a rank holds", "sums a step", "bytes a token"], *rows],
        "found": {name: round(found(visits, name), 3) for name in ("turn", "beginning")},
        "moved": {
            "modulo": round(moved(lambda b: (b % REPLICAS, b % (REPLICAS - 1))), 3),
            "best score": round(
                moved(lambda b: (by_beginning(b, all_of), by_beginning(b, fewer))), 3
            ),
        },
    }


def draw(shown: dict[str, Any]) -> Figure:
    """Left: what a rank holds. Middle: tokens found. Right: beginnings that move."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    rows = shown["table"][1:]
    held = [int(row[1].replace(",", "")) / 1e6 for row in rows]
    left.bar([str(row[0]) for row in rows], held, color="#0b6e99")
    left.set(xlabel="ranks", ylabel="millions of numbers", title="What one rank holds")
    for axes, key, title in (
        (middle, "found", "Tokens found, four replicas"),
        (right, "moved", "Moved when a replica is lost"),
    ):
        shares_of = [100 * share for share in shown[key].values()]
        bars = axes.bar(list(shown[key]), shares_of, color=["#d9480f", "#0b6e99"])
        axes.bar_label(bars, fmt="{:.0f}%")
        axes.set(title=title, ylim=(0, 100), ylabel="%")
    return figure

"""Chapter 5's figures: a decode step's attention, by row and at once; bytes that it reads."""

import time
from collections.abc import Callable
from typing import Any

import lab
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from mini.paged import by_row, vectorised
from torch import Tensor

ROWS, BLOCK, HEADS, DIM = (1, 4, 16, 64), 16, 2, 64
CONTEXT = 200  # tokens before the new one, of every row
SPREAD = (20, 60, 200, 600)  # contexts of very different lengths


def store_and_tables(contexts: list[int]) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    """Queries, keys and values of a store, and tables whose blocks lie in no order."""
    generator = torch.Generator().manual_seed(5)
    needed = [-(-context // BLOCK) for context in contexts]
    blocks = torch.randperm(sum(needed), generator=generator).tolist()
    tables = []
    for count in needed:
        tables.append(blocks[:count])
        blocks = blocks[count:]
    shape = (sum(needed) * BLOCK, HEADS, DIM)
    keys, values = (torch.randn(shape, generator=generator) for _ in range(2))
    q = torch.randn(len(contexts), 2 * HEADS, DIM, generator=generator)
    return q, keys, values, tables


def milliseconds(work: Callable[[], Tensor]) -> float:
    """Processor time, the least of seven tries."""
    least = float("inf")
    for _ in range(7):
        began = time.process_time()
        work()
        least = min(least, time.process_time() - began)
    return round(1000 * least, 2)


def timed(rows: int) -> list[Any]:
    """A line of the table: both ways, of rows that are equally long."""
    contexts = [CONTEXT] * rows
    q, keys, values, tables = store_and_tables(contexts)
    one = by_row(q, keys, values, tables, contexts, BLOCK)
    other = vectorised(q, keys, values, tables, contexts, BLOCK)
    assert torch.allclose(one, other, atol=1e-4)
    slow = milliseconds(lambda: by_row(q, keys, values, tables, contexts, BLOCK))
    fast = milliseconds(lambda: vectorised(q, keys, values, tables, contexts, BLOCK))
    return [rows, slow, fast, f"{slow / fast:.1f}"]


def read(contexts: list[int]) -> dict[str, int]:
    """Slots that each way reads: the tokens that are there, or all rows as long as the longest."""
    longest = max(-(-context // BLOCK) for context in contexts) * BLOCK
    return {"needed": sum(contexts), "padded": longest * len(contexts)}


def figures() -> dict[str, Any]:
    """Counts of slots; and times, which `measured` names."""
    timed(ROWS[0])  # the first one of a process is slow
    config = lab.pocket().model.config
    weights = sum(w.numel() for w in lab.pocket().model.weights.values()) * 4
    return {
        "table": [
            ["rows", "ms, row by row", "ms, at once", "times"],
            *(timed(rows) for rows in ROWS),
        ],
        "equal": read([CONTEXT] * 4),
        "spread": read(list(SPREAD)),
        "step_bytes": {
            str(rows): [weights, rows * CONTEXT * config.kv_bytes_per_token]
            for rows in (1, 4, 16, 64)
        },
        "measured": ["table"],
    }


def draw(found: dict[str, Any]) -> Figure:
    """Left: the times of both ways. Right: what a step reads, weights once and keys a row."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    lines = found["table"][1:]
    places = range(len(lines))
    left.bar([p - 0.2 for p in places], [line[1] for line in lines], 0.4, color="#d9480f")
    left.bar([p + 0.2 for p in places], [line[2] for line in lines], 0.4, color="#0b6e99")
    left.set_xticks(places, [str(line[0]) for line in lines])
    left.set(xlabel="rows of a step", ylabel="ms")
    left.set_title("Attention row by row (red), at once (blue)")
    rows = list(found["step_bytes"])
    weights, keys = zip(*found["step_bytes"].values(), strict=True)
    weights, keys = ([n / 2**20 for n in part] for part in (weights, keys))
    right.bar(rows, weights, color="#868e96", label="weights")
    right.bar(rows, keys, bottom=weights, color="#0b6e99", label="keys and values")
    right.set(xlabel="rows of a step", ylabel="MiB")
    right.set_title(f"What a step reads, {CONTEXT} tokens a row")
    right.legend(loc="upper left")
    return figure

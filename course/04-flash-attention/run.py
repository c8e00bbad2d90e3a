"""Chapter 4's figures: bytes that attention keeps and moves, and what a GPU made of it."""

import json
from typing import Any

import lab
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from mini.tiles import Meter, flash, standard

LENGTHS = (128, 256, 512, 1024, 2048)
DIM, TILE, NUMBER = 64, 128, 4  # numbers a head, tokens a tile, bytes a number
RESULTS = lab.ROOT / "benchmarks" / "results" / "prefill.json"
ENGINES = ("pytorch-standard", "naive-triton", "quire")


def counted(length: int) -> dict[str, int]:
    """One head over so many tokens, both ways: bytes kept in between, and bytes moved."""
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(length, DIM, generator=generator) for _ in range(3))
    plain, tiled = Meter(), Meter()
    one, other = standard(q, k, v, plain), flash(q, k, v, TILE, tiled)
    assert torch.allclose(one, other, atol=1e-4)
    return {
        "length": length,
        "kept": plain.between * NUMBER,
        "kept_flash": tiled.between * NUMBER,
        "moved": plain.moved * NUMBER,
        "moved_flash": tiled.moved * NUMBER,
    }


def on_a_gpu() -> list[dict[str, Any]]:
    """What was measured on a GPU, as it is committed: TFLOP/s, or why it could not run."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    shown = ("prefill-attention-128x128", "prefill-attention-1024x16")
    return [
        {
            "case": row["workload"].removeprefix("prefill-attention-"),
            "engine": row["engine"],
            "speed": row["value"] and round(row["value"], 1),
            "reason": row.get("reason", ""),
        }
        for row in rows
        if row["workload"] in shown and row["engine"] in ENGINES
    ]


def figures() -> dict[str, Any]:
    """Nothing here is timed: what was, was on a GPU, and is read."""
    counts = [counted(length) for length in LENGTHS]
    rows = [[f"{one['length']:,}", *(f"{one[key]:,}" for key in list(one)[1:])] for one in counts]
    return {
        "table": [["tokens", "kept", "kept, flash", "moved", "moved, flash"], *rows],
        "counts": counts,
        "gpu": on_a_gpu(),
        "measured": ["gpu"],
    }


def draw(found: dict[str, Any]) -> Figure:
    """Left: bytes moved by length. Right: speeds on a GPU."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    lengths = [one["length"] for one in found["counts"]]
    for key, colour, name in (
        ("moved", "#d9480f", "moved, all scores at once"),
        ("kept", "#f59f00", "... of which kept in between"),
        ("moved_flash", "#0b6e99", "moved, in tiles"),
    ):
        left.plot(
            lengths, [one[key] / 2**20 for one in found["counts"]], "o-", color=colour, label=name
        )
    left.set(xlabel="tokens", ylabel="MiB a head", title="What attention moves", ylim=0)
    left.legend()
    colours = dict(zip(ENGINES, ("#d9480f", "#868e96", "#0b6e99"), strict=True))
    for place, row in enumerate(found["gpu"]):
        speed = row["speed"]
        right.bar(place, speed or 0, color=colours[row["engine"]])
        right.text(place, (speed or 0) + 4, "does not fit" if speed is None else speed, ha="center")
    names = [f"{row['engine']}\n{row['case'].split('x')[0]}" for row in found["gpu"]]
    right.set_xticks(range(len(names)), names, rotation=30, fontsize=8)
    right.set(ylabel="TFLOP/s", title="On an H200, texts of 128 and of 1,024 tokens", ylim=(0, 320))
    return figure

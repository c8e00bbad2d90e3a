"""Chapter 3's figures: twelve requests share 1,024 slots, cut into blocks of several sizes."""

from dataclasses import dataclass, field
from typing import Any

import lab
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from mini.engine import Engine
from mini.scheduler import Request

SLOTS, MAX_TOKENS = 1024, 200
BLOCK_SIZES = (256, 64, 16, 4, 1)
SHOWN = 16  # the size whose blocks are drawn
SNAPSHOT = 20  # the step after which they are
QUESTIONS = (
    "What is 20 + 22?",
    "Count from 6 to 30.",
    "Tell me a short story about a fox.",
    "Hello!",
    "What is a block?",
    "Tell me a story.",
    "Count from 1 to 9.",
    "Repeat after me:\nred green blue green red",
    "What is 7 + 8?",
    "Tell me a short story about a crow.",
    "Count from 40 to 60.",
    "Thank you.",
)


@dataclass
class Use:
    """What one engine's store held, step by step."""

    steps: int = 0
    running: list[int] = field(default_factory=list)
    used: list[int] = field(default_factory=list)  # slots that hold a token
    held: list[int] = field(default_factory=list)  # slots of blocks in tables
    owners: list[int] = field(default_factory=list)  # of each block at the snapshot; -1: nobody
    preemptions: int = 0


def serve(pocket: lab.Pocket, block_size: int) -> Use:
    """Answer all questions at once on 1,024 slots, and look into the store after each step."""
    engine = Engine(
        pocket.model, num_blocks=SLOTS // block_size, block_size=block_size, policy="none"
    )
    requests = [Request(tuple(pocket.ask(question)), MAX_TOKENS) for question in QUESTIONS]
    for request in requests:
        engine.scheduler.submit(request)
    use = Use()
    while engine.step():
        alive = engine.scheduler.running
        use.steps += 1
        use.running.append(len(alive))
        use.used.append(sum(request.computed for request in alive))
        use.held.append(sum(len(request.table) for request in alive) * block_size)
        if use.steps == SNAPSHOT:
            use.owners = [-1] * engine.pool.num_blocks
            for request in alive:
                for block in request.table:
                    use.owners[block] = requests.index(request)
    use.preemptions = sum(request.preemptions for request in requests)
    return use


def figures() -> dict[str, Any]:
    """Of each size: how many ran at once, how much of what they held was empty, how many steps."""
    pocket = lab.pocket()
    rows, uses = [], {}
    for size in BLOCK_SIZES:
        use = uses[size] = serve(pocket, size)
        empty = 1 - sum(use.used) / sum(use.held)
        rows.append(
            [f"{size:,}", SLOTS // size, max(use.running), f"{100 * empty:.0f}%", use.steps]
        )
    return {
        "table": [
            ["tokens a block", "blocks", "requests at once", "empty of what was held", "steps"],
            *rows,
        ],
        "used": {str(size): use.used for size, use in uses.items()},
        "held": {str(size): use.held for size, use in uses.items()},
        "owners": uses[SHOWN].owners,
        "preemptions": sum(use.preemptions for use in uses.values()),
        "bytes_per_token": pocket.model.config.kv_bytes_per_token,
    }


def draw(found: dict[str, Any]) -> Figure:
    """Left: slots held and used. Right: whose each block is, in the middle of the run."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for size, colour in (("256", "#d9480f"), (str(SHOWN), "#0b6e99")):
        held, used = found["held"][size], found["used"][size]
        left.plot(held, color=colour, label=f"held, blocks of {size}")
        left.fill_between(range(len(used)), used, color=colour, alpha=0.25, label="... used")
    left.set(xlabel="step", ylabel="slots", title="What is held, and what of it holds a token")
    left.set_ylim(0, SLOTS * 1.05)
    left.legend(loc="upper right")
    owners = found["owners"]
    grid = [owners[i : i + 8] for i in range(0, len(owners), 8)]
    colours = plt.get_cmap("tab20", len(QUESTIONS))
    for y, line in enumerate(grid):
        for x, owner in enumerate(line):
            colour = "#f1f3f5" if owner < 0 else colours(owner)
            right.add_patch(plt.Rectangle((x, y), 0.94, 0.94, color=colour))
            if owner >= 0:
                right.text(x + 0.47, y + 0.5, str(owner + 1), ha="center", va="center")
    right.set(xlim=(0, 8), ylim=(len(grid), 0), xticks=[], yticks=[])
    right.set_title(f"Whose each block of {SHOWN} is after step {SNAPSHOT}")
    return figure

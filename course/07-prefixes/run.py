"""Chapter 7's figures: a chat whose past is found again, and three ways to make room."""

from typing import Any

import lab
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from mini.engine import Engine
from mini.pages import OutOfBlocks
from mini.prefix import RememberingPool

BLOCK, MAX_TOKENS = 16, 48
TURNS = (
    "Hello!",
    "What is a block?",
    "What is 20 + 22?",
    "Count from 6 to 12.",
    "What is 7 + 8?",
    "Tell me a story.",
    "What is a block?",
    "Thank you.",
)
POLICIES = ("none", "fifo", "lru")
POOLS = (12, 16, 20, 24, 28, 32, 40, 48, 64, 96)  # blocks
WINDOW = 128


def chat(pocket: lab.Pocket, policy: str) -> list[dict[str, int]]:
    """A conversation, turn by turn: how long each prompt is, and how much of it was found."""
    engine = Engine(pocket.model, block_size=BLOCK, policy=policy)
    said: list[str] = []
    rows = []
    for turn in TURNS:
        prompt = pocket.ask(*said, turn)
        (request,) = engine.generate([prompt], MAX_TOKENS)
        rows.append({"prompt": len(prompt), "found": request.cached})
        said += [turn, pocket.text(request.output)]
    return rows


def visits(pocket: lab.Pocket) -> list[list[int]]:
    """Eighty texts, one after the other. Each begins with the rules of one of five assistants and
    goes on with a question of its own. Every second one is for the first assistant."""
    names = ("Ben", "Ada", "Tom", "Eve", "Max")
    rules = "You are {}. You answer in one sentence. You are polite. You never speak of it. "
    return [
        pocket.ask(rules.format(names[who]) * 3 + f"Question {i}: what is {i} + {i}?")
        for i in range(80)
        for who in [0 if i % 2 == 0 else 1 + i // 2 % 4]
    ]


def found_share(texts: list[list[int]], num_blocks: int, policy: str) -> float:
    """The share of all tokens that a pool of this size finds again. No model is needed for that."""
    pool = RememberingPool(num_blocks, BLOCK, policy)
    found = total = 0
    for tokens in texts:
        table: list[int] = []
        pool.share(table, pool.find(tokens))
        hit = len(table) * BLOCK
        total += len(tokens)
        try:
            pool.grow(table, len(tokens))
        except OutOfBlocks:  # longer than the whole pool: refused
            pool.give_back(table)
            continue
        found += hit
        pool.remember(table, tokens)
        pool.give_back(table)
    return found / total


def blocks_for_a_hit(num_tokens: int, window: int | None) -> int:
    """Blocks that must still be there to go on behind num_tokens tokens: all, or those that the
    window of the next token reaches into."""
    first = 0 if window is None else max(0, num_tokens - window + 1) // BLOCK
    return -(-num_tokens // BLOCK) - first


def figures() -> dict[str, Any]:
    """The chat with and without a memory; shares by policy and size; blocks by window."""
    pocket = lab.pocket()
    with_cache, without = chat(pocket, "lru"), chat(pocket, "none")
    texts = visits(pocket)
    rows = [
        [number, turn["prompt"], turn["found"], turn["prompt"] - turn["found"]]
        for number, turn in enumerate(with_cache, 1)
    ]
    total = [sum(row[i] for row in rows) for i in (1, 2, 3)]
    return {
        "table": [["turn", "prompt", "found", "computed"], *rows, ["**all**", *total]],
        "without": [turn["prompt"] - turn["found"] for turn in without],
        "shares": {
            policy: [round(found_share(texts, pool, policy), 3) for pool in POOLS]
            for policy in POLICIES
        },
        "pools": POOLS,
        "lengths": [min(map(len, texts)), max(map(len, texts))],
        "windows": [
            [n, blocks_for_a_hit(n, None), blocks_for_a_hit(n, WINDOW)]
            for n in (100, 200, 500, 1000, 2000)
        ],
    }


def draw(found: dict[str, Any]) -> Figure:
    """Left: tokens computed a turn. Right: what a pool of each size finds, by policy."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    turns = found["table"][1:-1]
    numbers = [row[0] for row in turns]
    left.bar(numbers, [row[3] for row in turns], color="#d9480f", label="computed")
    bottom = [row[3] for row in turns]
    left.bar(numbers, [row[2] for row in turns], bottom=bottom, color="#a5d8ff", label="found")
    left.set(xlabel="turn of the chat", ylabel="tokens of the prompt", title="A chat's prompts")
    left.legend(loc="upper left")
    for policy, colour in zip(POLICIES, ("#868e96", "#e67700", "#0b6e99"), strict=True):
        shares = [100 * share for share in found["shares"][policy]]
        right.plot(POOLS, shares, marker="o", color=colour, label=policy)
    right.set(xlabel="blocks in the pool", ylabel="% of tokens found", ylim=(-3, 100))
    right.set_title("Eighty texts, five beginnings")
    right.legend(loc="center right")
    return figure

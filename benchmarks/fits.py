"""Which Qwen3 fits which cards: the table of docs/scaling.md, by the dry run's own sizes.

    python benchmarks/fits.py [--utilization 0.9]

For each model and card the fewest cards that start it, and the fewest whose cache also holds one
request of all its positions; a number alone where both are the same. No card is needed. A step's
own memory is not counted, which the real start measures: a cell that fits barely may not.
"""

import argparse
from dataclasses import replace

import torch

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.model.config import ModelConfig
from quire.engine.startup import ranks_needed, sizing
from quire.engine.startup.sizing import SizingPlan

GIB = 1 << 30
# What a program may have of each, in GiB (nvidia-smi's MiB, not the name's GB).
CARDS = {"24 GB (L4)": 22.5, "48 GB (L40S)": 44.5, "80 GB (H100)": 79.2, "141 GB (H200)": 139.8}
MODELS = (
    *("0.6B", "1.7B", "4B", "8B", "8B-fp8", "14B", "14B-fp8", "32B", "32B-fp8"),
    *("30B-A3B", "30B-A3B-fp8", "235B-A22B", "235B-A22B-fp8"),
)
MAX_CARDS = 16


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utilization", type=float, default=0.9, help="gpu_memory_utilization")
    share = parser.parse_args().utilization
    print("| Qwen3 | " + " | ".join(CARDS) + " |")
    print("|---" * (len(CARDS) + 1) + "|")
    for name in MODELS:
        found = cells(name, [int(GIB * size * share) for size in CARDS.values()])
        print(f"| {name} | " + " | ".join(found) + " |")


def cells(name: str, rooms: list[int]) -> list[str]:
    """A model's row. rooms: bytes that each kind of card gives."""
    config, shape = EngineConfig(model=f"random:{name}"), ModelConfig.named_shape(name)
    plan = of_a_card(config, shape)
    shares = []
    for size in range(1, MAX_CARDS + 1):
        try:
            shares.append(ranks_needed.share_of(config, shape, plan, size))
        except ConfigError:
            continue
    found = []
    for room in rooms:
        least = next((one.size for one in shares if one.least_bytes <= room), None)
        whole = next((one.size for one in shares if one.whole_bytes <= room), None)
        found.append(cell(least, whole))
    return found


def cell(least: int | None, whole: int | None) -> str:
    """The fewest cards that start it, and that hold the longest request."""
    if least is None:
        return f"none of up to {MAX_CARDS}"
    return str(least) if least == whole else f"{least} (all positions: {whole})"


def of_a_card(config: EngineConfig, shape: ModelConfig) -> SizingPlan:
    """The plan of a card that is not here: its lengths and types are asked for alone."""
    device = torch.device("cpu")
    dtype = sizing.resolve_dtype(config, shape, torch.device("cuda"))
    plan = sizing.plan_of(config, shape, device, dtype, 1)
    return replace(plan, device="cuda")


if __name__ == "__main__":
    main()

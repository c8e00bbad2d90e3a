"""Write the lists of what engines of published models launch (engine/runner/launches/).

    python tools/list_launches.py

A first start compiles from such a list while it still imports PyTorch. Run this whenever a kernel,
its launches or the steps that are warmed change: a test compares the lists with what is launched.
Needs Triton with Gluon's kernels (quire.kernels.support.HOPPER_TRITON), and no GPU.
"""

import sys

from quire.engine.config import EngineConfig
from quire.engine.runner import listed
from quire.engine.runner.compile_worker import kernels_of, launches_of
from quire.engine.startup.compile_for_card import orders_for
from quire.kernels import launch_list, offline
from quire.kernels.cards import KNOWN

CARDS = ("h100", "h200")  # on which first starts were measured


def launches(model: str, gpu: str) -> list[listed.Launch]:
    """What an engine of a model launches on a GPU, with the options that it has unasked."""
    offline.compile_for(KNOWN[gpu])
    orders = orders_for(EngineConfig(model=f"random:{model}"), KNOWN[gpu])
    kernels = kernels_of(launches_of(orders))
    return [launch_list.written(kernel.compiling) for kernel in kernels.values()]


def main() -> int:
    for gpu in CARDS:
        found = {model: launches(model, gpu) for model in listed.MODELS}
        listed.write(KNOWN[gpu].name, found)
        print(gpu, {model: len(some) for model, some in found.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())

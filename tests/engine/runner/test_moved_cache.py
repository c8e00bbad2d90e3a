"""A cache of kernels that has moved is the cache of the process that compiles, too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import PATIENCE

from quire.engine.config import EngineConfig
from quire.engine.runner.compile_orders import Orders, deciding

pytest.importorskip("triton")

CONFIG = EngineConfig(
    model="random:tiny", max_num_seqs=1, max_num_batched_tokens=16, max_model_len=32
)
# The worker itself, over one light kernel.
ONE = """
import sys
from quire.engine.runner import compile_worker
found = compile_worker.kernels_of
def one(launches):
    return {name: it for name, it in found(launches).items() if name.startswith("_copy_kernel")}
compile_worker.kernels_of = one
sys.exit(compile_worker.main())
"""


def compiled(folder: Path) -> set[str]:
    """The entries that the worker tells of."""
    orders = Orders(deciding(CONFIG), "bfloat16", 90, 232_448, "", True, cache=str(folder))
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with subprocess.Popen(
        [sys.executable, "-c", ONE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"TRITON_CACHE_DIR": str(folder)},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(orders.written() + "\n")
        process.stdin.flush()
        words = [json.loads(line) for line in process.stdout]
        assert process.wait(PATIENCE) == 0
    return {Path(word["folder"]).name for word in words if "folder" in word}


def files(folder: Path) -> dict[str, int]:
    """Which files the kernels' code is: a name may be given to another one."""
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.glob("*/*.cubin")}


def test_kernels_of_a_folder_that_has_moved_are_not_compiled_again(tmp_path: Path) -> None:
    made, moved = tmp_path / "made", tmp_path / "moved"
    told = compiled(made)
    made.rename(moved)
    before = files(moved)
    assert before and {Path(name).parent.name for name in before} == told
    assert compiled(moved) == told
    assert files(moved) == before

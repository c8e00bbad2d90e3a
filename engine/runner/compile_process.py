"""The process that compiles kernels; on an engine's first start it begins before it has orders.

Invariant: nothing that keeps it from starting early keeps the engine. Without heavy imports, so
that it can be called before them: to load torch takes this process as long as it takes the
engine's, and beside it costs nothing. It waits for its orders, a line of its input, and ends when
that is closed; where an engine like this one has left its kernels, it waits for them first of all.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from quire.engine import cores, lifeline

Worker = subprocess.Popen[str]
WORKER = (sys.executable, "-P", "-m", "quire.engine.runner.compile_main")
DEVICES = "CUDA_VISIBLE_DEVICES"
TOLD = (  # options that are told on its command line, which others on the machine may read
    *("model", "revision", "device", "dtype", "exact", "kv_cache_dtype", "quantization"),
    *("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size"),
    "tensor_parallel_size",
)
MAX_PROCESSES = 16
LISTS = "quire-*.json"  # in Triton's cache folder: what engines here have needed

_early: list[Worker] = []  # at most one: not asked to do anything yet


def start(program: Sequence[str] = WORKER, *, stderr: int = subprocess.DEVNULL) -> Worker:
    """One that waits for its orders. Call it in a thread that lives as long."""
    without_card = {DEVICES: "", "OMP_NUM_THREADS": "1"}
    return lifeline.start_captured(program, stdin=subprocess.PIPE, stderr=stderr, **without_card)


def start_early(options: str, program: Sequence[str] = WORKER) -> None:
    """Start it before there are orders. options: an EngineConfig's, as JSON."""
    with contextlib.suppress(OSError):  # it is started again once it has orders
        _early.append(start((*program, options, os.environ.get(DEVICES, ""))))


def triton_cache() -> Path:
    """Where Triton keeps kernels, by its own rules. A user without a home has it in "~"."""
    given = os.environ.get("TRITON_CACHE_DIR")
    if given is not None:
        return Path(given)
    home = os.environ.get("TRITON_HOME")
    return (_home() if home is None else Path(home)) / ".triton" / "cache"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        return Path("~")


def default_processes() -> int:
    """As many as there are cores for this process, up to a limit."""
    return min(cores.usable(), MAX_PROCESSES)


def forked(work: Callable[[], None]) -> int:
    """The id of a fork that does it and ends: with this process, if that ends before."""
    process = os.fork()
    if process:
        return process
    try:
        lifeline.be_killed_with_parent()
        work()
        os._exit(0)
    finally:
        os._exit(1)


def take_early() -> Worker | None:
    """The one that was started early, if there is one: the caller's from now on."""
    return _early.pop() if _early else None


def end(worker: Worker) -> None:
    """End it, and with it what it has forked, which see their input closed."""
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what it had not read yet
                pipe.close()

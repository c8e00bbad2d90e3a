"""Kernels compiled by other processes, beside the loading of the weights.

Invariant: nothing depends on it but time. What these processes have not done, for whatever reason,
the engine's own warm-up does; they end with the engine's process, and hold no memory of a GPU.
One is started, which finds out what there is to compile and is forked for as many as there are
cores: what takes long on many cores is to load torch on each.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from quire.engine import lifeline
from quire.engine.config import EngineConfig
from quire.engine.runner.compile_orders import Compiled, Orders
from quire.engine.runner.compiled_cache import CompiledCache, writable_cache
from quire.kernels import support

log = logging.getLogger(__name__)

MOST_PROCESSES = 16
_LIMIT = 300.0  # seconds, after which the engine compiles the rest itself
_WORKER = (sys.executable, "-m", "quire.engine.runner.compile_worker")
_ENDED = None  # what a reader says last

Words = queue.SimpleQueue[Compiled | None]


class CompileAhead:
    """The processes at work for one engine; none where the cache has all of its kernels."""

    def __init__(
        self, orders: Orders, cache: CompiledCache, versions: str, worker: Sequence[str] = _WORKER
    ) -> None:
        """Begins. versions: of whatever decides the code beside the orders."""
        self._cache = cache
        self._key = orders.key(versions)
        self._words: Words = queue.SimpleQueue()
        self._worker = None if cache.is_whole(self._key) else self._started(orders, worker)

    @property
    def at_work(self) -> bool:
        """Whether anything has to be compiled."""
        return self._worker is not None

    def _started(self, orders: Orders, worker: Sequence[str]) -> "subprocess.Popen[str]":
        environment = os.environ | {
            "TRITON_CACHE_DIR": str(self._cache.folder),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        with lifeline.signals_blocked():
            process = subprocess.Popen(
                worker,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(orders.written() + "\n")
            process.stdin.flush()
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        return process

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            word = Compiled.read(line)
            if word is not None:
                self._words.put(word)
        self._words.put(_ENDED)

    def wait(self, progress: Callable[[float], None]) -> int:
        """Until all is compiled that these processes will compile; how many kernels that is."""
        done: set[str] = set()
        kernels, until = 0, time.monotonic() + _LIMIT
        while self._worker is not None:
            try:
                word = self._words.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                log.warning("kernels are still being compiled after %g s: left", _LIMIT)
                break
            if word is _ENDED:
                break
            kernels = word.kernels
            done.add(word.folder)
            progress(len(done) / kernels)
        self.end()
        if done and len(done) == kernels:
            self._keep(done)
        elif self._worker is not None:
            log.warning("%d of %d kernels were compiled ahead", len(done), kernels)
        return len(done)

    def _keep(self, folders: set[str]) -> None:
        try:
            self._cache.note(self._key, folders)
        except OSError as error:
            log.warning("compiled kernels could not be noted in %s: %s", self._cache.folder, error)

    def end(self) -> None:
        """End the processes that still run: those that were forked see their input closed."""
        process = self._worker
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def begin(
    config: EngineConfig, dtype: torch.dtype, device: torch.device, *, pdl: bool
) -> CompileAhead | None:
    """Begin to compile for an engine on a GPU; None on a CPU, which has nothing to compile.

    dtype: of weights, activations and cache. From here on Triton keeps kernels in a folder that can
    be written.
    """
    if device.type != "cuda":
        return None
    from triton import knobs

    cache = writable_cache(Path(knobs.cache.dir))
    knobs.cache.dir = str(cache.folder)
    major, minor = torch.cuda.get_device_capability(device)
    orders = Orders(
        options=dataclasses.asdict(config),
        dtype=str(dtype).removeprefix("torch."),
        arch=10 * major + minor,
        shared=support.shared_bytes(device),
        card=support.card_name(device),
        pdl=pdl,
        processes=min(_cores(), MOST_PROCESSES),
    )
    return CompileAhead(orders, cache, _versions())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions() -> str:
    """Of all that decides a kernel's code beside the orders: packages, and the sources here."""
    digest = hashlib.sha256()
    for root in (Path(support.__file__).parent, Path(__file__).parents[1]):
        for file in sorted([*root.rglob("*.py"), *root.rglob("*.json")]):
            digest.update(file.read_bytes())
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "triton")]
    return " ".join([*packages, digest.hexdigest()])

"""Kernels compiled by other processes, beside the loading of the weights.

Invariant: nothing depends on it but time. What these processes have not done, for whatever reason,
the engine's own warm-up does; they end with the engine's process, and hold no memory of a GPU.
One is started, which finds out what there is to compile and is forked for as many as there are
cores: what takes long on many cores is to load torch on each.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from quire.engine.config import EngineConfig
from quire.engine.runner import compile_process, early_start
from quire.engine.runner.compile_orders import (
    Compiled,
    Counted,
    Found,
    Orders,
    Word,
    deciding,
    read_word,
    versions,
)
from quire.engine.runner.compile_process import Worker
from quire.engine.runner.compiled_cache import CompiledCache, writable_cache
from quire.kernels import support
from quire.kernels.linear.tuning import measured_card

log = logging.getLogger(__name__)

_LIMIT = 300.0  # seconds, after which the engine compiles the rest itself

Words = queue.SimpleQueue[Word | None]  # None: the reader's last


class CompileAhead:
    """The processes at work for one engine; none where the cache has all of its kernels."""

    def __init__(
        self,
        orders: Orders,
        cache: CompiledCache,
        versions: str,
        early: Worker | None = None,
        limit: float | None = None,
    ) -> None:
        """Begins. versions: of whatever decides the code beside the orders. early: a process that
        waits for orders already; it does this work, or is ended. limit: seconds to wait for it."""
        self._cache = cache
        self._key = orders.key(versions)
        self._words: Words = queue.SimpleQueue()
        self._done: dict[str, str] = {}  # folders of kernels, by their names
        self._wanted: set[str] = set()  # names of those that are launched, as far as told
        self._counted = False  # that is all
        self._ended = False  # nothing more will be
        self._until = time.monotonic() + (_LIMIT if limit is None else limit)
        self.waited = 0.0  # seconds
        self._worker: Worker | None = None
        if not cache.is_whole(self._key):
            try:
                self._worker = early or compile_process.start()
            except OSError as error:
                log.warning("no process could be started to compile kernels ahead: %s", error)
                return
            self._order(self._worker, orders)
        elif early is not None:
            compile_process.end(early)

    @property
    def at_work(self) -> bool:
        """Whether anything has to be compiled."""
        return self._worker is not None

    def _order(self, worker: Worker, orders: Orders) -> None:
        assert worker.stdin is not None
        with contextlib.suppress(OSError):
            worker.stdin.write(orders.written() + "\n")
            worker.stdin.flush()
        threading.Thread(target=self._read, args=(worker,), daemon=True).start()

    def _read(self, worker: Worker) -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            word = read_word(line)
            if word is not None:
                self._words.put(word)
        self._words.put(None)

    @contextlib.contextmanager
    def awaited(self, progress: Callable[[float], None]) -> Iterator[None]:
        """Within, a launch waits for its own kernel, and one that is not known for all of them."""
        from triton import knobs

        from quire.kernels.offline import name_of

        def has_kernel(*, key: str, fn: Any, **_more: Any) -> bool:
            self._take(name_of(key, fn), progress)
            return False  # go on

        before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, has_kernel
        try:
            yield
        finally:
            knobs.runtime.jit_cache_hook = before

    def wait(self, progress: Callable[[float], None]) -> int:
        """Until all is compiled that these processes will compile; how many kernels that is."""
        self._take(None, progress)
        self.end()
        done = self._done.keys() & self._wanted
        if done and self._whole:
            self._keep({self._done[name] for name in done})
        elif self._worker is not None:
            of_all = f" of {len(self._wanted)}" if self._counted else ""
            log.warning("%d%s kernels were compiled ahead", len(done), of_all)
        return len(done)

    @property
    def _whole(self) -> bool:
        """Whether all that are launched are there."""
        return self._counted and self._wanted <= self._done.keys()

    def _take(self, name: str | None, progress: Callable[[float], None]) -> None:
        """Until a kernel is there, or, if it is not one of them, all are; or nothing comes."""
        begin = time.monotonic()
        while not self._whole and name not in self._done:
            word = self._next()
            if word is None:
                break
            self._note(word)
            if self._counted and self._wanted:
                progress(len(self._done.keys() & self._wanted) / len(self._wanted))
        self.waited += time.monotonic() - begin

    def _note(self, word: Word) -> None:
        match word:
            case Found(name):
                self._wanted.add(name)
            case Counted():
                self._counted = True
            case Compiled(folder, name):
                where = Path(folder)
                if where.parent == self._cache.folder:  # not one that cannot be written any more
                    self._done[name] = where.name

    def _next(self) -> Word | None:
        """What is said next; None from when nothing is."""
        if self._worker is None or self._ended:
            return None
        try:
            word = self._words.get(timeout=max(self._until - time.monotonic(), 0))
        except queue.Empty:
            log.warning("kernels are still being compiled: left to the engine")
            word = None
        self._ended = word is None
        return word

    def _keep(self, folders: set[str]) -> None:
        try:
            self._cache.note(self._key, folders)
        except OSError as error:
            log.warning("compiled kernels could not be noted in %s: %s", self._cache.folder, error)

    def end(self) -> None:
        """End the processes that still run."""
        if self._worker is not None:
            compile_process.end(self._worker)


def begin(
    config: EngineConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    pdl: bool,
    leads: bool = True,
    exact: bool = False,
) -> CompileAhead | None:
    """Begin to compile for an engine on a GPU.

    None on a CPU and without Triton, which have nothing to compile, and on a rank that does not
    lead: it finds what the leading rank has compiled. dtype: of weights and activations. From here
    on Triton keeps kernels in a folder that can be written.
    """
    early = compile_process.take_early()
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        if early is not None:
            compile_process.end(early)
        return None
    from triton import knobs

    from quire.kernels import movable_cache

    movable_cache.use()
    cache = writable_cache(Path(knobs.cache.dir))
    knobs.cache.dir = str(cache.folder)
    threading.Thread(target=_ready_to_launch, name="quire-triton", daemon=True).start()
    if not leads:
        return None
    orders = orders_of(config, dtype, device, pdl=pdl, exact=exact)
    orders = dataclasses.replace(
        orders, cache=str(cache.folder), processes=compile_process.default_processes()
    )
    return CompileAhead(orders, cache, versions(), early)


def orders_of(
    config: EngineConfig, dtype: torch.dtype, device: torch.device, *, pdl: bool, exact: bool
) -> Orders:
    """What an engine on a GPU, or on the one that is assumed, can launch. dtype, pdl, exact: as in
    `begin`."""
    major, minor = support.capability(device)
    return Orders(
        options=deciding(config),
        dtype=str(dtype).removeprefix("torch."),
        arch=10 * major + minor,
        shared=support.shared_bytes(device),
        card=measured_card(support.card_name(device)),
        pdl=pdl,
        exact=exact,
    )


def _ready_to_launch() -> None:
    """What Triton does at a process's first launch otherwise, and needs no interpreter for."""
    from triton.runtime.driver import driver

    _ = driver.active.utils  # built, in C, where it is not in the cache
    early_start.digest_compiler()

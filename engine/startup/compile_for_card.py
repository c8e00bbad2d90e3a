"""What an engine's first start would compile, compiled before, for a card that need not be here.

Invariant: the orders are those that an engine of the same options gives on that card, so that it
finds all of its kernels; what it would refuse is refused here, in the same words.
"""

import dataclasses
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from quire.engine.config import EngineConfig
from quire.engine.errors import CompileError, ConfigError
from quire.engine.model.load_config import model_config, resolve_max_model_len
from quire.engine.model.registry import check_kernels
from quire.engine.runner import compile_process, exact_mode
from quire.engine.runner.compile_ahead import CompileAhead, orders_of
from quire.engine.runner.compile_orders import Orders, versions
from quire.engine.runner.compiled_cache import CompiledCache
from quire.engine.startup import sizing
from quire.kernels import support
from quire.kernels.cards import KNOWN, SUPPORTED, OfflineCard
from quire.kernels.sealed import probe

_LIMIT = 86_400.0  # seconds
_SHARED_FOLDER = 0o755  # before the umask: servers may run as others
_META = torch.device("meta")  # whose tensors are taken to be on the card


@dataclass(frozen=True)
class Outcome:
    """kernels: how many are there for the engine; new: whether any was compiled now, or all had
    been before. seconds: how long it took. folder: where they are, as TRITON_CACHE_DIR."""

    kernels: int
    new: bool
    seconds: float
    folder: Path


def compile_for_card(
    config: EngineConfig,
    gpu: str,
    folder: Path | None,
    jobs: int,
    progress: Callable[[float], None],
) -> Outcome:
    """Have all kernels of an engine in a folder. gpu: of `SUPPORTED`. folder: None is Triton's own.
    jobs: processes that compile. progress: gets the share that is done. Raises ConfigError for what
    no engine would start with, and CompileError."""
    begin = time.monotonic()
    card = card_named(gpu)
    _refuse_without_triton()
    orders = orders_for(config, card)
    from triton import knobs

    cache = CompiledCache(_prepared(Path(knobs.cache.dir) if folder is None else folder))
    orders = dataclasses.replace(orders, cache=str(cache.folder), processes=jobs)
    known = versions()
    key = orders.key(known)
    new = not cache.is_whole(key)
    if new:
        before, knobs.cache.dir = knobs.cache.dir, str(cache.folder)
        try:
            with _linkable():
                _compile(orders, cache, known, progress)
        finally:
            knobs.cache.dir = before
    return Outcome(cache.count(key), new, time.monotonic() - begin, cache.folder)


def card_named(gpu: str) -> OfflineCard:
    """Raises ConfigError for one that is not known."""
    card = KNOWN.get(gpu.lower())
    if card is None:
        raise ConfigError(f"gpu = {gpu}: not known; known: {', '.join(SUPPORTED)}")
    return card


def orders_for(config: EngineConfig, card: OfflineCard) -> Orders:
    """Those that an engine gives on a card. Raises ConfigError."""
    if config.device == "cpu":
        raise ConfigError("device = cpu: kernels are compiled for a GPU; take auto or cuda")
    if config.int8:
        raise ConfigError("quantization = int8: only on the CPU, and kernels are compiled for GPUs")
    with support.assumed(card.capability, card.shared, card.name):
        shape = model_config(config)
        dtype = sizing.resolve_dtype(config, shape, _META)
        check_kernels(shape, dtype, _META)
        sizing.resolve_cache_dtype(config, dtype, _META)
        sizing.check_grids(config, shape)
        resolve_max_model_len(config, shape)
        sizing.weight_bytes(config, shape, dtype)  # refuses what so many ranks cannot share
        exact = exact_mode.is_wanted(config, shape, dtype, _META)
        return orders_of(config, dtype, _META, pdl=support.can_chain(_META), exact=exact)


def _refuse_without_triton() -> None:
    try:
        import triton
    except ImportError as error:
        raise ConfigError(
            f"kernels are compiled by Triton, which cannot be imported here: {error}"
        ) from error
    if triton.knobs.runtime.interpret:
        raise ConfigError("TRITON_INTERPRET is set: kernels would be interpreted, not compiled")


def _prepared(folder: Path) -> Path:
    try:
        probe(folder, _SHARED_FOLDER)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder.resolve()


@contextmanager
def _linkable() -> Iterator[None]:
    """Within, what Triton builds in C can be built; what it asks the driver with is already."""
    from quire.kernels import offline  # needs triton

    with ExitStack() as stack:
        try:
            stack.enter_context(offline.linkable())
            offline.build_driver_module()
        except (RuntimeError, subprocess.CalledProcessError) as error:
            raise ConfigError(f"Triton needs a C compiler (gcc, clang or CC): {error}") from error
        yield


def _compile(
    orders: Orders, cache: CompiledCache, known: str, progress: Callable[[float], None]
) -> None:
    """Raises CompileError unless all are there. known: the versions."""
    with tempfile.TemporaryFile("w+") as said:
        worker = compile_process.start(stderr=said.fileno())
        ahead = CompileAhead(orders, cache, known, worker, _LIMIT)
        try:
            ahead.wait(progress)
        finally:
            ahead.end()
        if cache.is_whole(orders.key(known)):
            return
        said.seek(0)
        reason = next((line for line in reversed(said.read().splitlines()) if line.strip()), "")
    raise CompileError(f"not all kernels could be compiled{reason and ': '}{reason}")
